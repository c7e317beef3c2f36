"""Whether a candidate is right, asked before whether it is fast.

Every candidate is held against the float64 oracle on

    short      63 time steps and lanes that fill no tile
    long       1001 time steps of few lanes, one sequence
    decaying   the inputs that the transition depends on times 16: extreme dt*A, states forgotten within a step
    lingering  the same inputs over 64: states kept over the whole length
    whole      the problem's own shape: everything finite and, for the last lanes alone, compared with the oracle

each computed twice, which must give the same bits (a race rarely repeats itself), with inputs left as they were. A flavour that the
op's mathematics does not allow (a transition above 1 would grow without bound) is left out, decided from the graph. Oracles depend
on the problem alone and are kept on disk, so that neither the next candidate nor the next process computes them again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scanc.codegen.layout import Mode, checkpoint_names
from scanc.forms.plan import lane_axes
from scanc.ir import Graph, Output, topological
from scanc.problem import Problem
from scanc.reference import evaluate
from scanc.runtime import atomic_write, load_or_set_aside

# Largest relative error ‖out - oracle‖ / ‖oracle‖ a candidate may make: (forward and step, gradients).
BARS = {"float32": (5e-6, 2e-5), "float64": (5e-6, 2e-5), "bfloat16": (4e-3, 1e-2), "float16": (2e-3, 5e-3)}
# Scaling by 16 multiplies the exponent of a transition, and so the rounding of exp(dt*A), by up to 256.
FLAVOURS = {"plain": 1.0, "decaying": 16.0, "lingering": 1.0 / 64.0}
FLAVOUR_SLACK = {"plain": 1.0, "decaying": 4.0, "lingering": 4.0}

Kernel = Callable[..., Mapping[str, Tensor]]


@dataclass(frozen=True)
class Trial:
    """One thing a candidate must get right: a problem, inputs of one flavour, and whether only the last lanes have an oracle."""

    name: str
    problem: Problem
    flavour: str = "plain"
    whole: bool = False

    @property
    def digest(self) -> str:
        text = json.dumps([dataclasses.asdict(self.problem), self.flavour, self.whole], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Verdict:
    """``errors`` {output: largest relative error met}; ``reason`` what was wrong, "" when nothing was."""

    errors: Mapping[str, float]
    reason: str = ""

    @property
    def right(self) -> bool:
        return not self.reason


def reduced(problem: Problem, graph: Graph, *, length: int, inner: int, outer: int, first: int = 0) -> Problem:
    """The problem at ``length`` steps, ``inner`` positions of its innermost lane axis, ``first`` (0: ``outer``) of its first, which is
    the batch where there is one, and ``outer`` of each other one.

    State axes, groups and axes of 8 positions or fewer keep their sizes: kernels are built around them. A grouped axis stays a
    multiple of its groups.
    """
    sizes = dict(problem.case)
    lanes = [a for a in lane_axes(graph) if a in sizes]
    wanted = {a: outer for a in lanes[:-1]} | {a: first or outer for a in lanes[:1]} | {a: inner for a in lanes[-1:]}
    per = {axis: group for group, axis in graph.groups.items()}
    changed = {}
    for axis, most in wanted.items():
        if sizes[axis] <= 8 and axis != lanes[0]:
            continue
        step = sizes.get(per.get(axis, ""), 1)
        changed[axis] = min(sizes[axis], step * math.ceil(most / step))
    if graph.time in sizes:
        changed[graph.time] = length
    return problem.with_case(**changed)


def trials(problem: Problem, graph: Graph) -> list[Trial]:
    """Everything a candidate for ``problem`` must get right, cheapest first.

    The lengths are odd: nothing divides them, and to a compiler that specialises on strides (Triton) they are all one case.
    """
    short = Trial("short", reduced(problem, graph, length=63, inner=72, outer=2))
    # One sequence, which costs least, of several heads: a gradient summed over all steps is one number a head, and of one or two numbers
    # both may cancel to two thousandths of what was added up, where rounding 16-bit operands once is over any bar.
    long = reduced(problem, graph, length=1001, inner=24, outer=4, first=1)
    found = [short, Trial("long", long)]
    if _transition_inputs(graph):
        # Several heads and sequences: where decays are strong a single one's gradients may all but vanish, or cancel.
        few = reduced(problem, graph, length=301, inner=24, outer=4)
        found += [Trial("decaying", few, "decaying"), Trial("lingering", few, "lingering")]
    return [*found, Trial("whole", problem, whole=True)]


def _transition_inputs(graph: Graph) -> list[str]:
    """Real inputs that some scan's transition depends on."""
    roots = [n.args[0] for n in graph.nodes() if n.op == "scan"]
    return [n.name for n in topological(roots) if n.op == "input" and n.kind == "real" and n.name]


def _flavoured(inputs: Mapping[str, Tensor], graph: Graph, flavour: str) -> dict[str, Tensor] | None:
    """The inputs in a flavour; None where a transition would grow."""
    scale = FLAVOURS[flavour]
    if scale == 1.0:
        return dict(inputs)
    changed = {k: inputs[k] * scale for k in _transition_inputs(graph) if k in inputs}
    made = {**inputs, **changed}
    transitions = {n.args[0] for n in graph.nodes() if n.op == "scan"}
    outputs = tuple(Output(f"a{i}", a, a.axes) for i, a in enumerate(transitions))
    values = evaluate(dataclasses.replace(graph, outputs=outputs, inplace={}), made)
    grows = any(bool((v.abs() > 1 + 1e-6).any()) or not bool(torch.isfinite(v).all()) for v in values.values())
    return None if grows else made


@dataclass(frozen=True)
class Prepared:
    """A trial with its inputs, and what the oracle says of the outputs it judges. ``oracle`` is None where the flavour has no meaning."""

    trial: Trial
    inputs: Mapping[str, Tensor]
    oracle: Mapping[str, Tensor] | None
    tail: Mapping[str, int]


def prepare(trial: Trial, graph: Graph, device: torch.device, folder: Path | None = None, *,
            inputs: Mapping[str, Tensor] | None = None) -> Prepared:
    """Makes a trial's inputs, where none are given, and its oracle, which comes from ``folder`` where an earlier process left it."""
    if inputs is None:
        inputs = trial.problem.inputs(device)
    tail = _tail(trial.problem, graph) if trial.whole else {}
    if not trial.whole:
        made = _flavoured(inputs, graph, trial.flavour)
        if made is None:
            return Prepared(trial, inputs, None, tail)
        inputs = made
    path = folder / f"{trial.digest}-{device.type}.pt" if folder is not None else None
    oracle = load_or_set_aside(path, functools.partial(_read, device)) if path is not None else None
    if oracle is None:
        oracle = _oracle(trial, graph, inputs, tail)
        if path is not None:
            _keep(oracle, path)
    finite = all(bool(torch.isfinite(v).all()) for v in oracle.values())
    return Prepared(trial, inputs, oracle if finite or trial.flavour == "plain" else None, tail)


def _oracle(trial: Trial, graph: Graph, inputs: Mapping[str, Tensor], tail: Mapping[str, int]) -> dict[str, Tensor]:
    if not trial.whole:
        return dict(trial.problem.oracle(inputs))
    judged = _independent_outputs(graph, tail)
    if not judged:
        return {}
    part = dataclasses.replace(graph, outputs=judged, inplace={})
    return evaluate(part, {k: _last(v, graph.input(k).axes, graph, tail) for k, v in inputs.items() if graph.has_input(k)})


def _read(device: torch.device, path: Path) -> dict[str, Tensor]:
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except (pickle.UnpicklingError, RuntimeError) as error:  # torch's words for a foreign and for a truncated file
        raise ValueError(str(error).splitlines()[0]) from error


def _keep(oracle: Mapping[str, Tensor], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({k: v.cpu() for k, v in oracle.items()}, buffer)
    atomic_write(path, buffer.getvalue())


def _tail(problem: Problem, graph: Graph, budget: int = 1 << 21) -> dict[str, int]:
    """How many of the last positions of each lane axis to compare at full length, so that the largest value stays under ``budget``."""
    sizes = dict(problem.case)
    lanes = [a for a in lane_axes(graph) if a in sizes]
    rest = math.prod(s for a, s in sizes.items() if a not in lanes and a not in graph.groups)
    per = {axis: group for group, axis in graph.groups.items()}
    tail = {}
    for axis in reversed(lanes):
        members = sizes[axis] // sizes.get(per.get(axis, ""), 1)
        tail[axis] = max(1, min(members, 8, budget // max(rest, 1)))
        rest *= tail[axis]
    return tail


def _last(x: Tensor, axes: tuple[str, ...], graph: Graph, tail: Mapping[str, int]) -> Tensor:
    """The last positions of each lane axis, and the last group of the axes that have groups."""
    for position, axis in enumerate(axes):
        keep = tail.get(axis, 1 if graph.groups.get(axis) in tail else x.shape[position])
        x = x.narrow(position, max(0, x.shape[position] - keep), min(keep, x.shape[position]))
    return x.contiguous()


def _independent_outputs(graph: Graph, tail: Mapping[str, int]) -> tuple[Output, ...]:
    """Outputs whose every lane is computed from that lane alone, so that the last lanes can be judged without the others."""
    found = []
    for output in graph.outputs:
        mixed = False
        for node in topological([output.node]):
            axis = node.attrs.get("axis")
            gone = set(node.args[0].axes) - set(node.axes) if node.op == "sum" else set()
            mixed |= bool(gone & set(tail)) or (node.op in ("index", "size", "shift", "conv", "conv_kernel_grad", "scan") and axis in tail)
        if not mixed:
            found.append(output)
    return tuple(found)


def run(kernel: Kernel, inputs: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Calls an executable; what the op overwrites in place goes into the very inputs given, and is read back from there."""
    places = {output: inputs[name] for output, name in graph.inplace.items()}
    if checkpoint_names(1)[0] in inputs:
        return dict(kernel(inputs, mode=Mode(resumes=True)))
    return {**(kernel(inputs, into=places) if places else kernel(inputs)), **places}


def as_trained(kernel: Kernel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs a kernel has in training: a backward that resumes from checkpoints has those that its forward leaves, if it leaves any."""
    made = getattr(kernel, "checkpoints_in_training", None)
    return {**inputs, **(made(inputs) if made is not None else {})}


def judge(kernel: Kernel, prepared: Prepared, graph: Graph) -> Verdict:
    """Runs the kernel twice on copies and holds the result against the oracle."""
    trial = prepared.trial
    if prepared.oracle is None:
        return Verdict({})
    first_inputs, second_inputs = ({k: v.clone() for k, v in prepared.inputs.items()} for _ in range(2))
    first, second = (run(kernel, as_trained(kernel, given), graph) for given in (first_inputs, second_inputs))
    overwritten = set(graph.inplace.values())
    for name, value in prepared.inputs.items():
        if name not in overwritten and not _same_bits(first_inputs[name], value):
            return Verdict({}, f"{trial.name}: input '{name}' was overwritten")
    for output in graph.outputs:
        if output.name not in first:
            return Verdict({}, f"{trial.name}: output '{output.name}' is missing")
        if not bool(torch.isfinite(first[output.name]).all()) and trial.whole:
            return Verdict({output.name: math.nan}, f"{trial.name}: output '{output.name}' has values that are not finite")
        if not _same_bits(first[output.name], second[output.name]):
            return Verdict({}, f"{trial.name}: output '{output.name}' differs between two runs on the same inputs")
    return _compare(first, prepared, graph)


def _compare(found: Mapping[str, Tensor], prepared: Prepared, graph: Graph) -> Verdict:
    trial, oracle = prepared.trial, dict(prepared.oracle or {})
    if trial.whole:
        axes = {o.name: o.axes for o in graph.outputs}
        found = {k: _last(found[k], axes[k], graph, prepared.tail) for k in oracle}
    for name, wanted in oracle.items():
        if found[name].shape != wanted.shape:
            return Verdict({}, f"{trial.name}: output '{name}' has shape {tuple(found[name].shape)}, not {tuple(wanted.shape)}")
    if not oracle:
        return Verdict({})
    errors = dict(trial.problem.errors({k: found[k] for k in oracle}, oracle))
    bar = BARS.get(trial.problem.dtype, BARS["float32"])[trial.problem.pass_ == "backward"] * FLAVOUR_SLACK[trial.flavour]
    for name, error in errors.items():
        if not error <= bar:
            return Verdict(errors, f"{trial.name}: output '{name}' has relative error {error:.3g}, over {bar:.3g}")
    return Verdict(errors)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that takes one NaN for another."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))


def check(kernel: Kernel, prepared: list[Prepared], graph: Graph) -> Verdict:
    """Every trial in turn, stopping at the first that goes wrong; ``errors`` holds the largest of each output."""
    worst: dict[str, float] = {}
    for each in prepared:
        verdict = judge(kernel, each, graph)
        for name, error in verdict.errors.items():
            worst[name] = error if math.isnan(error) else max(worst.get(name, 0.0), error)
        if not verdict.right:
            return Verdict(worst, verdict.reason)
    return Verdict(worst)
