"""Ops: a DSL function with its signature read, traced on demand, callable on tensors.

The signature comes from the annotations (jaxtyping's): ``Float[Tensor, "b d l"]`` is a real argument with those axes, ``| None``
makes it optional, and a union of two shapes or kinds gives alternatives, chosen by the tensor's rank and dtype. Keyword-only
parameters are options, fixed at trace time. A *variant* is one choice of all these; each variant is traced once.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scanc import dsl
from scanc.eager import Again, is_plain
from scanc.errors import ArgumentError, TraceError, UnsupportedForm
from scanc.ir import Axes, Builder, Graph, Node, Output, Type, topological
from scanc.verify import verify

REGISTRY: dict[str, Op] = {}

Option = bool | int | float | str


@dataclass(frozen=True)
class Argument:
    """One tensor argument: its alternatives as types (kind and axes in the tensor's order)."""

    name: str
    alternatives: tuple[Type, ...]
    optional: bool


@dataclass(frozen=True)
class Variant:
    """One way to call an op: which alternative each argument takes (None: absent) and the options."""

    choices: tuple[int | None, ...]
    options: tuple[tuple[str, Option], ...]


def _kind_of(annotation: Any) -> str:
    dtypes = annotation.dtypes
    if "float32" in dtypes:
        return "real"
    if "complex64" in dtypes:
        return "complex"
    return "bool" if set(dtypes) == {"bool"} else "int"


def _tensor_types(annotation: Any) -> tuple[tuple[Type, ...], bool]:
    """The types in an annotation, and whether None is one of them."""
    parts = (
        typing.get_args(annotation)
        if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
        else (annotation,)
    )
    found = tuple(Type(tuple(p.dim_str.split()), _kind_of(p)) for p in parts if hasattr(p, "dim_str"))
    return found, type(None) in parts


def kind_of_dtype(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "real"
    return "bool" if dtype == torch.bool else "int"


class Op:
    """One algorithm as the user writes it. Calling it on tensors runs ``torch.ops.scanc.<name>``.

    ``cases``    shapes to bench and tune, {axis: size}
    ``example``  decorator: sample inputs for a case; without it every real input is uniform on (0, 1)
    ``prepare``  decorator: turns the public call (its own signature) into the op's own arguments, on tensors
    """

    def __init__(self, function: Callable[..., Any], groups: dict[str, str] | None = None) -> None:
        self.function = function
        self.name = function.__name__
        self.cases: list[dict[str, int]] = []
        self.has_step = False  # torch_ops.register knows
        self._groups = groups
        self._example: Callable[..., dict[str, Any]] | None = None
        self._prepare: Callable[..., dict[str, Any]] | None = None
        self._read_signature()
        functools.update_wrapper(self, function)
        self._traced = functools.lru_cache(maxsize=None)(self._trace)
        self.graph()  # a program that is wrong is refused where it is written, and leaves nothing behind
        REGISTRY[self.name] = self
        from scanc import torch_ops

        self._registered = torch_ops.register(self)

    def _read_signature(self) -> None:
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except NameError as error:
            self._bad_signature(f"an annotation names something unknown ({error})")
        arguments, options = [], {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                if not isinstance(parameter.default, Option):
                    self._bad_signature(f"option '{name}' needs a default that is a bool, int, float or str")
                options[name] = parameter.default
                continue
            found, optional = _tensor_types(hints.get(name))
            if not found:
                self._bad_signature(f"argument '{name}' has no shape: write e.g. {name}: Float[Tensor, \"b d l\"]")
            arguments.append(Argument(name, found, optional))
            if name.startswith("d_") and any(a.name == name[2:] for a in arguments):
                self._bad_signature(f"argument '{name}' has the name that the gradient of '{name[2:]}' takes: rename it")
        results = hints.get("return")
        parts = typing.get_args(results) if typing.get_origin(results) is tuple else (results,)
        if not arguments or not all(hasattr(p, "dim_str") for p in parts):
            self._bad_signature('the return annotation must give every result\'s shape, e.g. -> Float[Tensor, "b d l"]')
        self.arguments: tuple[Argument, ...] = tuple(arguments)
        self.options: dict[str, Option] = options
        self.results: tuple[Axes, ...] = tuple(tuple(p.dim_str.split()) for p in parts)

    def _bad_signature(self, reason: str) -> typing.NoReturn:
        code = self.function.__code__
        raise TraceError(where=f"{code.co_filename}:{code.co_firstlineno}", op=self.name, reason=reason, remedy="Annotate with jaxtyping")

    # -- tracing ------------------------------------------------------------------------------------------------------------

    def variant(self, without: tuple[str, ...] = (), kinds: Mapping[str, int] | None = None, **options: Option) -> Variant:
        """The variant with every optional input but those in ``without``; ``kinds`` picks alternatives by number."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ArgumentError(
                op=self.name,
                argument=unknown[0],
                value="given",
                limit=f"options are {', '.join(self.options) or 'none'}",
                remedy="Remove it or correct its name.",
            )
        by_name = {a.name: a for a in self.arguments}
        for name in without:
            if name not in by_name or not by_name[name].optional:
                raise ArgumentError(
                    op=self.name,
                    argument=name,
                    value="left out",
                    limit="it is not an optional input",
                    remedy="Optional inputs are those annotated `| None`.",
                )
        choices = tuple(None if a.name in without else (kinds or {}).get(a.name, 0) for a in self.arguments)
        return Variant(choices, tuple(sorted({**self.options, **options}.items())))

    def graph(self, without: tuple[str, ...] = (), kinds: Mapping[str, int] | None = None, **options: Option) -> Graph:
        """The traced graph of one variant. Raises TraceError at the user's line."""
        return self._traced(self.variant(without, kinds, **options))

    def graph_of(self, variant: Variant) -> Graph:
        return self._traced(variant)

    def _trace(self, variant: Variant) -> Graph:
        chosen = [(a, a.alternatives[c]) for a, c in zip(self.arguments, variant.choices, strict=True) if c is not None]
        order = tuple(dict.fromkeys(axis for _, t in chosen for axis in t.axes))
        default_parent = "h" if "h" in order else "d"
        groups = self._groups if self._groups is not None else ({"g": default_parent} if {"g", default_parent} <= set(order) else {})
        groups = {g: p for g, p in groups.items() if g in order and p in order}
        builder = Builder(order, groups, "")
        inputs = {a.name: builder.input(a.name, t) for a, t in chosen}
        values = {a.name: dsl.Value(inputs[a.name]) if a.name in inputs else None for a in self.arguments}
        tracer = dsl.Tracer(self.name, builder)
        local: dict[str, Any] = {}
        with dsl.tracing(tracer):
            try:
                with _locals_of(self.function, local):
                    returned = self.function(**values, **dict(variant.options))
            except (UnboundLocalError, NameError) as error:
                raise TraceError(
                    where=_line_of(error, self.function),
                    op=self.name,
                    reason=f"a value is used before it is defined ({error})",
                    remedy="A recurrence on itself is written sc.scan(a, b, axis=…): h_t = a_t h_{t-1} + b_t, linear in h",
                ) from error
            tracer.settled = _home(self.function)
            results = returned if isinstance(returned, tuple) else (returned,)
            if len(results) != len(self.results):
                tracer.fail(f"it returns {len(results)} values, but its annotation has {len(self.results)}", "Make both agree")
            for name, value in local.items():
                if isinstance(value, dsl.Value) and value.node.name is None:
                    object.__setattr__(value.node, "name", name)  # before the graph is published; later nodes are immutable
            return self._finish(tracer, inputs, results, order, groups, variant)

    def _finish(
        self,
        tracer: dsl.Tracer,
        inputs: Mapping[str, Any],
        results: tuple[Any, ...],
        order: Axes,
        groups: Mapping[str, str],
        variant: Variant,
    ) -> Graph:
        first = next((n.name for n in inputs.values() if n.kind == "real"), "")
        nodes = [dsl._value(r).node for r in results]
        scans = [n for n in Graph("", (), tuple(Output("", n, ()) for n in nodes), "", order).nodes() if n.op == "scan"]
        times = {s.attrs["axis"] for s in scans}
        if len(times) > 1:
            tracer.fail(f"scans run along several axes ({', '.join(sorted(times))})", "Write one op per axis of time")
        time = times.pop() if times else ("l" if "l" in order else "")
        # Results are called the same in every variant: as in the one with everything present.
        settled = [] if variant == self.variant() else [o.name for o in self._traced(self.variant()).outputs]
        outputs: list[Output] = []
        for position, (node, axes) in enumerate(zip(nodes, self.results, strict=True)):
            extra = [a for a in node.axes if a not in axes]
            unknown = [a for a in axes if a not in order]
            if extra or unknown:
                tracer.fail(
                    f"result {position} has axes ({' '.join(node.axes)}), but the annotation says ({' '.join(axes)})",
                    "Sum over the axes that are too many, or correct the annotation",
                )
            # No result shares its name with an argument, nor its cotangent's (d_<result>).
            taken = {o.name for o in outputs} | {a.name.removeprefix(p) for a in self.arguments for p in ("", "d_")}
            name = settled[position] if settled else _output_name(position, node, taken)
            outputs.append(Output(name, node, axes, first if time in axes else ""))
        read = {a for o in outputs if time in o.axes for a in o.axes} or {a for o in outputs for a in o.axes}
        contracted = tuple(a for a in order if any(a in s.axes for s in scans) and a not in read and a != time)
        if not scans and time:
            contracted = _normed(nodes, time, order)
        used = tuple(inputs[a.name] for a in self.arguments if a.name in inputs)
        # One state axis at most: a further contracted axis is an ordinary lane whose sum comes last.
        graph = Graph(self.name, used, tuple(outputs), time, order, groups, contracted[-1:])
        verify(graph, "trace")
        return graph

    # -- binding tensors ------------------------------------------------------------------------------------------------------

    def bind(self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option]) -> Variant:
        """The variant that these tensors call for. Raises ArgumentError on a wrong kind or rank."""
        choices: list[int | None] = []
        for a in self.arguments:
            t = tensors.get(a.name)
            if t is None:
                if not a.optional:
                    raise ArgumentError(
                        op=self.name,
                        argument=a.name,
                        value="missing",
                        limit="it is required",
                        remedy=f"Give a tensor with axes ({' '.join(a.alternatives[0].axes)}).",
                    )
                choices.append(None)
                continue
            choices.append(self._choose(a, t))
        return Variant(tuple(choices), tuple(sorted({**self.options, **options}.items())))

    def _choose(self, a: Argument, t: Tensor) -> int:
        kind = kind_of_dtype(t.dtype)
        for position, alternative in enumerate(a.alternatives):
            if alternative.kind == kind and len(alternative.axes) == t.dim():
                return position
        shapes = " or ".join(f"{x.kind} ({' '.join(x.axes)})" for x in a.alternatives)
        if any(x.kind == kind for x in a.alternatives):
            raise ArgumentError(
                op=self.name,
                argument=a.name,
                value=f"of rank {t.dim()} {tuple(t.shape)}",
                limit=f"it must be {shapes}",
                remedy="Reshape the tensor to those axes.",
            )
        raise ArgumentError(
            op=self.name, argument=a.name, value=f"of dtype {t.dtype}", limit=f"it must be {shapes}", remedy="Cast the tensor."
        )

    # -- running ----------------------------------------------------------------------------------------------------------------

    def example(self, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """Registers ``function(make) -> {argument or option: tensor or value}``, the op's sample inputs (see scanc.problem.Make)."""
        self._example = function
        return function

    def prepare(self, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """Registers the public signature: ``function(*args, **kwargs) -> {name: value}`` of the op's own arguments and options."""
        self._prepare = function
        self.__signature__ = inspect.signature(function)
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._prepare is not None:
            args, kwargs = (), self._prepare(*args, **kwargs)
        if not torch.compiler.is_compiling():
            made = self._registered.plain_forward(args, kwargs)
            if made is not None:
                return made
        return getattr(torch.ops.scanc, self.name)(*args, **kwargs)

    def training(
        self,
        tensors: Mapping[str, Tensor | None],
        options: Mapping[str, Option],
        wanted: tuple[str, ...],
        into: Mapping[str, Tensor] = {},  # noqa: B006 - never written to
    ) -> tuple[list[Tensor], dict[str, Tensor], int]:
        """For autograd functions that hold an op: the results of a call that gradients of ``wanted`` will be asked of, and what
        ``gradients`` resumes from: checkpoints of the states, and every how many steps they are (0 for none).

        ``into`` gives results, by name, the memory to be written to: of their shape and dtype, with any strides."""
        return self._registered.dispatch.training(self._every(tensors), {**self.options, **options}, wanted, into)

    def gradients(
        self,
        cotangents: Sequence[Tensor | None],
        tensors: Mapping[str, Tensor | None],
        options: Mapping[str, Option],
        wanted: tuple[str, ...],
        checkpoints: Mapping[str, Tensor] = {},  # noqa: B006 - never written to
        every: int = 0,
        into: Mapping[str, Tensor] = {},  # noqa: B006
        last: bool = False,
    ) -> dict[str, Tensor]:
        """{input: gradient} for ``wanted``, from one cotangent a result (None for zeros) and what ``training`` left.

        ``into`` gives gradients, by input, the memory to be written to: the halves of a whole, say, which need then not be put together.
        It may be that of a tensor over the same axes which is read here for the last time: every kernel has read a tile of its inputs
        before it writes the results of that tile. ``last``: nobody reads ``checkpoints`` after this, so that they may be
        overwritten, which saves memory (within an autograd function's backward: ``not keeps_graph()``)."""
        places = {f"d_{name}": storage for name, storage in into.items()}
        found = self._registered.dispatch.backward(
            cotangents, self._every(tensors), wanted, {**self.options, **options}, checkpoints, every, places, last
        )
        return {name: found[f"d_{name}"] for name in wanted}

    def _every(self, tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        return {a.name: tensors.get(a.name) for a in self.arguments}

    def step(self, state: Tensor, *args: Any, **kwargs: Any) -> Any:
        """One decode step: arguments as in a call but with no time axis; ``state`` is read and overwritten in place.

        Returns the results over time, at this step. Raises UnsupportedForm where the op keeps no single state
        (no ``initial_state`` argument, a reverse scan, a look-back at the inputs).
        """
        if not self.has_step:
            raise UnsupportedForm(
                op=self.name,
                form="step",
                forms=", ".join(self.forms()),
                reason="a step carries one state from call to call, and it has no argument initial_state or no result over time",
            )
        if not torch.compiler.is_compiling():
            made = self._registered.plain_step((state, *args), kwargs)
            if made is not None:
                return made
        return getattr(torch.ops.scanc, self.name + "_step")(state, *args, **kwargs)

    def again_step(self, tensors: Sequence[Tensor | None], options: Mapping[str, Option]) -> Again | None:
        """A step that was taken on these tensors (the state, then the other arguments in order), as a function of values in their places.

        It looks at nothing but addresses: whoever calls it knows that shapes, strides, dtypes and devices are the same, and that torch
        has no part in the call (``scanc.eager.Recall``). None where a step is more than a launch, or torch had a part in it.
        """
        names = self._registered.step_names
        held, by_name = tensors[0], dict(zip(names[1:], tensors[1:], strict=False))
        if held is None or not is_plain(tensors):
            return None
        return self._registered.again_step(names[: len(tensors)], held, {n: by_name.get(n) for n in names[1:]}, {**self.options, **options})

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """The oracle's evaluation by torch operations, in the inputs' own precision (float32 at least); differentiable."""
        from scanc.reference import evaluate
        from scanc.torch_ops import bind_call, check_sizes, finish_dtype

        tensors, options = bind_call(self, args, kwargs) if self._prepare is None else _split(self, self._prepare(*args, **kwargs))
        graph = self.graph_of(self.bind(tensors, options))
        given = {k: v for k, v in tensors.items() if v is not None}
        check_sizes(self.name, graph, given)
        wide = any(t.dtype in (torch.float64, torch.complex128) for t in given.values())
        out = evaluate(graph, given, dtype=torch.float64 if wide else torch.float32)
        results = tuple(finish_dtype(graph, o, out[o.name], given) for o in graph.outputs)
        return results if len(results) > 1 else results[0]

    def forms(self, **options: Any) -> tuple[str, ...]:
        """The forms this op can be evaluated in."""
        from scanc.compiler import forms_of

        return forms_of(self.graph(**options))

    def __repr__(self) -> str:
        return f"<scanc op {self.name}({', '.join(a.name for a in self.arguments)})>"


def _split(op: Op, given: Mapping[str, Any]) -> tuple[dict[str, Tensor | None], dict[str, Option]]:
    names = {a.name for a in op.arguments}
    return {k: v for k, v in given.items() if k in names}, {k: v for k, v in given.items() if k in op.options}


def _normed(results: list[Node], time: str, order: Axes) -> Axes:
    """The axes that are summed over at each step for values that have them again: what a norm runs over."""
    needs: dict[Node, set[str]] = {}  # axes summed over among what a node needs
    found: set[str] = set()
    for node in topological(results):
        needs[node] = set().union(*(needs[a] for a in node.args))
        found |= needs[node] & set(node.axes)
        if node.op == "sum" and time in node.axes:
            needs[node] |= set(node.args[0].axes) - set(node.axes)
    return tuple(a for a in order if a in found)


def _output_name(position: int, node: Node, taken: set[str]) -> str:
    """The user's word for a result, else ``y`` or ``last_state``; made unique."""
    word = node.name if node.name and node.op != "input" else None
    name = word or ("last_state" if node.op == "final" else "y" if position == 0 else f"y_{position}")
    while name in taken:
        name = f"{name}_{position}"
    return name


@contextmanager
def _locals_of(function: Callable[..., Any], into: dict[str, Any]) -> Iterator[None]:
    """Collects the function's local variables as it returns: their names are the graph's names."""
    code = function.__code__

    def watch(frame: types.FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code is code:
            into.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def _home(function: Callable[..., Any]) -> str:
    """Where a function is written, for errors about all of it."""
    return f"{function.__code__.co_filename.rsplit('/', 1)[-1]}:{function.__code__.co_firstlineno}"


def _line_of(error: BaseException, function: Callable[..., Any]) -> str:
    trace = error.__traceback__
    line = function.__code__.co_firstlineno
    while trace is not None:
        if trace.tb_frame.f_code is function.__code__:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{function.__code__.co_filename.rsplit('/', 1)[-1]}:{line}"
