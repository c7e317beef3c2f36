"""A problem: one op at one shape, dtype and pass, with sample inputs and the oracle's answer.

Tuning, checking and benchmarking all start from here, so that they measure and test the same thing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ir import Graph
from scanc.op import REGISTRY, Op, Variant
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.passes.step import step as step_pass
from scanc.reference import evaluate, evaluate_in_lanes

PASSES = ("forward", "backward", "step")


class Make:
    """Makes sample tensors by axes: ``make.normal("b d l")``. Parameters are float32 whatever the problem's dtype.

    Numbers are drawn where the generator is: a GPU draws its own, of which a processor would take seconds to draw as many.
    """

    def __init__(self, case: Mapping[str, int], dtype: torch.dtype, generator: torch.Generator) -> None:
        self.case, self.dtype, self.generator = case, dtype, generator

    def _shape(self, axes: str) -> list[int]:
        return [self.case.get(a, 1) for a in axes.split()]

    def normal(self, axes: str, scale: float = 1.0, *, parameter: bool = False) -> Tensor:
        x = torch.randn(self._shape(axes), generator=self.generator, device=self.generator.device) * scale
        return x if parameter else x.to(self.dtype)

    def uniform(self, axes: str, low: float = 0.0, high: float = 1.0, *, parameter: bool = False) -> Tensor:
        x = torch.rand(self._shape(axes), generator=self.generator, device=self.generator.device) * (high - low) + low
        return x if parameter else x.to(self.dtype)


@dataclass(frozen=True)
class Problem:
    """``case`` maps axes to sizes (kept sorted); ``options`` overrides the example's inputs: an option's value, or None to leave an
    optional input out, or "given" to have one the example leaves out. Option ``state`` names the dtype of a step's state."""

    op: str
    case: tuple[tuple[str, int], ...]
    dtype: str = "float32"
    pass_: str = "forward"
    options: tuple[tuple[str, Any], ...] = field(default=())

    @classmethod
    def of(cls, op: str | Op, case: Mapping[str, int], dtype: str = "float32", pass_: str = "forward", **options: Any) -> Problem:
        name = op if isinstance(op, str) else op.name
        return cls(name, tuple(sorted(case.items())), dtype, pass_, tuple(sorted(options.items())))

    def __post_init__(self) -> None:
        import scanc.ops  # noqa: F401 - fills the registry, and itself needs Make from here

        if self.op not in REGISTRY:
            raise ArgumentError(
                op=self.op,
                argument="op",
                value="unknown",
                limit=f"ops are {', '.join(sorted(REGISTRY))}",
                remedy="`scanc list` shows them.",
            )
        if self.pass_ not in PASSES:
            raise ArgumentError(
                op=self.op, argument="pass", value=self.pass_, limit=f"it must be one of {', '.join(PASSES)}", remedy="Correct it."
            )
        missing = [a for a in self.axes if a not in dict(self.case)]
        if missing:
            raise ArgumentError(
                op=self.op,
                argument="case",
                value=f"without axis {missing[0]}",
                limit=f"its axes are {', '.join(self.axes)}",
                remedy="Give every axis a size, e.g. b=1,d=64,l=128.",
            )

    @property
    def definition(self) -> Op:
        return REGISTRY[self.op]

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes a case must give: those of the required inputs' first alternatives, groups left out (one group when not given)."""
        found = {a: None for x in self.definition.arguments if not x.optional for a in x.alternatives[0].axes if a != "g"}
        return tuple(found)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.case)

    def with_case(self, **sizes: int) -> Problem:
        return replace(self, case=tuple(sorted({**dict(self.case), **sizes}.items())))

    # -- inputs ---------------------------------------------------------------------------------------------------------------

    def call(self, device: str | torch.device = "cpu", seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, options) of one forward call."""
        op = self.definition
        generator = _generator(device, seed)
        make = Make(self.sizes, getattr(torch, self.dtype), generator)
        if op._example is not None:
            with generator.device:  # what the example makes by torch's own functions
                given = op._example(make)
        else:
            given = {
                a.name: make.uniform(" ".join(a.alternatives[0].axes))
                for a in op.arguments
                if a.alternatives[0].kind == "real" and not a.optional
            }
        by_name = {a.name: a for a in op.arguments}
        for name, value in self.options:
            if value == "given" and name in by_name:
                alternative = by_name[name].alternatives[0]
                axes = " ".join(alternative.axes)
                given[name] = _segments(make, axes) if alternative.kind == "int" else make.normal(axes, parameter=True)
                if alternative.kind == "complex":
                    given[name] = torch.complex(given[name], make.normal(axes, parameter=True))
            else:
                given[name] = value
        tensors = {k: v.to(device) for k, v in given.items() if isinstance(v, Tensor)}
        return tensors, {k: v for k, v in given.items() if k in op.options}

    @functools.cached_property
    def variant(self) -> Variant:
        small = replace(self, case=tuple((a, 1) for a, _ in self.case))
        tensors, options = small.call()
        return self.definition.bind(tensors, options)

    def forward_graph(self) -> Graph:
        return self.definition.graph_of(self.variant)

    def graph(self) -> Graph:
        """The specialised graph of the pass."""
        forward = self.forward_graph()
        small, _ = replace(self, case=tuple((a, 1) for a, _ in self.case)).call()
        dtypes = {k: str(v.dtype).removeprefix("torch.") for k, v in small.items()}
        if self.pass_ == "step":
            graph = step_pass(self._with_state(forward))
            own = {"complex": "complex64", "real": self.state}  # a state that the sample has none of
            return specialize(graph, {str(n.name): dtypes.get(str(n.name), own.get(n.kind, "float32")) for n in graph.inputs})
        if self.pass_ == "forward":
            return specialize(forward, dtypes)
        graph = backward(forward, self.wrt(forward), self.cotangents(forward))
        return specialize(graph, dtypes | cotangent_dtypes(forward, dtypes))

    @property
    def state(self) -> str:
        """The dtype that a step keeps its state in: option ``state``, float32 where there is none."""
        return str(dict(self.options).get("state", "float32"))

    def _with_state(self, forward: Graph) -> Graph:
        """A step needs a state to step from: the variant that has one."""
        op = self.definition
        names = [a.name for a in op.arguments]
        choices = list(self.variant.choices)
        for i, argument in enumerate(op.arguments):
            if argument.name.startswith("initial_state"):
                choices[i] = 0
        assert len(names) == len(choices)
        return op.graph_of(replace(self.variant, choices=tuple(choices)))

    def wrt(self, forward: Graph) -> tuple[str, ...]:
        return tuple(str(n.name) for n in forward.inputs if n.kind in ("real", "complex"))

    def cotangents(self, forward: Graph) -> tuple[str, ...]:
        """Gradients come in for the results over time; a training step has none for the last state."""
        timed = tuple(o.name for o in forward.outputs if forward.time in o.axes)
        return (
            tuple(o.name for o in forward.outputs)
            if "cotangents" in dict(self.options)
            else timed or tuple(o.name for o in forward.outputs)
        )

    def inputs(self, device: str | torch.device = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Tensors for every input of ``graph()``."""
        tensors, _ = self.call(device, seed)
        graph = self.graph()
        sizes = {a: s for n in self.forward_graph().inputs if n.name in tensors for a, s in zip(n.axes, tensors[n.name].shape, strict=True)}
        generator = _generator(device, seed + 1)
        result = {}
        for node in graph.inputs:
            name, dtype = str(node.name), getattr(torch, node.type.dtype)
            if name in tensors and self.pass_ != "step":
                result[name] = tensors[name]
            elif name in tensors:
                full = self.forward_graph().input(name) if self.forward_graph().has_input(name) else None
                time = self.forward_graph().time
                x = tensors[name]
                result[name] = x.select(full.axes.index(time), 0).contiguous() if full is not None and time in full.axes else x
            else:
                shape = [sizes.get(a, self.sizes.get(a, 1)) for a in node.axes]
                drawn = torch.complex64 if dtype.is_complex else torch.float32
                result[name] = torch.randn(shape, generator=generator, dtype=drawn, device=generator.device).to(device, dtype)
        return result

    # -- the oracle -----------------------------------------------------------------------------------------------------------

    def oracle(self, inputs: Mapping[str, Tensor], *, lane_block: int = 0) -> dict[str, Tensor]:
        """Float64 results; ``lane_block`` walks the innermost lane axis in blocks to save memory."""
        graph = self.graph()
        if not lane_block:
            return evaluate(graph, inputs, dtype=torch.float64)
        from scanc.forms.plan import innermost_lane

        return evaluate_in_lanes(graph, inputs, innermost_lane(self.forward_graph()), lane_block, torch.float64)

    @staticmethod
    def errors(outputs: Mapping[str, Tensor], oracle: Mapping[str, Tensor]) -> dict[str, float]:
        """‖out − oracle‖ / ‖oracle‖ for each result; NaN where either has one."""
        found = {}
        for name, truth in oracle.items():
            wide = torch.complex128 if truth.is_complex() else torch.float64
            norm = torch.linalg.vector_norm(truth.to(wide))
            gap = torch.linalg.vector_norm(outputs[name].to(truth.device, wide) - truth.to(wide))
            found[name] = float(gap / norm) if float(norm) > 0 or bool(norm.isnan()) else float(gap)
        return found


def _generator(device: str | torch.device, seed: int) -> torch.Generator:
    """A GPU's own, whose numbers are others than a processor's of the same seed; else a processor's."""
    on = torch.device(device)
    return torch.Generator(on if on.type == "cuda" else "cpu").manual_seed(seed)


def cotangent_dtypes(forward: Graph, dtypes: Mapping[str, str]) -> dict[str, str]:
    """Storage dtypes of ``d_<output>`` inputs: those of the outputs themselves."""
    result = {}
    for o in forward.outputs:
        default = {"real": "float32", "complex": "complex64"}.get(o.node.kind, "float32")
        result[f"d_{o.name}"] = dtypes[o.like] if o.like else default
    return result


def _segments(make: Make, axes: str) -> Tensor:
    """Integers that change now and then along the last axis: sample sequence indices."""
    shape = make._shape(axes)
    return (torch.rand(shape, generator=make.generator, device=make.generator.device) < 0.05).to(torch.int32).cumsum(-1).to(torch.int32)
