"""From a call on tensors to the kernel that serves it: variant, target, schedule, executable. No tuning happens here.

The order of schedules is: tuned on this machine, bundled with the package, tuned nearby (device or shape), the form's own default.
The first time a default is used the log says so, once, at info level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scanc import runtime
from scanc.codegen.layout import Mode
from scanc.compiler import Executable, ReferenceExecutable, backend, compile_graph, default_schedule, result_dtype
from scanc.errors import ArgumentError, BackendUnavailable, UnsupportedForm
from scanc.ir import Axes, Graph
from scanc.launch import lies_as
from scanc.passes.adjoint import adjoint
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.passes.step import step as step_pass
from scanc.reference import evaluate
from scanc.schedule import ChunkedSchedule, ConvolutionSchedule, Schedule, StencilSchedule
from scanc.target import Target

if TYPE_CHECKING:
    from scanc.op import Op, Option, Variant

_told: set[str] = set()


def tell_once(level: str, message: str) -> None:
    """Logs a message the first time it comes up in this process."""
    if message not in _told:
        _told.add(message)
        getattr(runtime.logger, level)(message)


@functools.cache
def targets_of(device: torch.device) -> tuple[Target, ...]:
    """The targets that can serve a device here, best first; the reference always closes the list."""
    forced = runtime.target_override()
    last = Target("cpu", "native", "reference")
    if forced is not None and forced.backend == "reference":
        return (last,)
    if forced is not None and forced.device_type == device.type:
        return (forced, last)
    if forced is not None:
        tell_once("warning", f"SCANC_TARGET is {forced}, which is nothing for {device.type} tensors; it is not followed for them")
    candidates: list[Target] = []
    if device.type == "cpu":
        candidates = [Target("cpu", "native", "cpp")]
    elif device.type == "cuda" and torch.version.hip:
        candidates = [Target("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0], "triton")]
    elif device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        candidates = [Target("cuda", f"sm_{major}{minor}", name) for name in ("cuda", "triton")]
    usable = tuple(t for t in candidates if backend(t).available())
    if not usable:
        tell_once(
            "warning",
            f"no kernel backend can run for {device.type} tensors here (scanc doctor says what is missing); "
            "ops run through the reference, which is slow",
        )
    return (*usable, last)


@functools.cache
def cache_bytes(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache; 0 for any other device."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


# Distinct shapes remembered for each op; beyond that all are forgotten, which costs one check of each again.
_MOST_ROUTES = 4096


class _Route:
    """A graph and its program, for tensors of one signature."""

    def __init__(self, graph: Graph, program: Executable | ReferenceExecutable, device: torch.device) -> None:
        self.graph, self.device = graph, device
        self.names = tuple(str(n.name) for n in graph.inputs)
        self.outputs = tuple(o.name for o in graph.outputs)
        self.results = tuple(o for o in self.outputs if o not in graph.inplace)
        self.program = program
        self.intervals: dict[tuple[str, ...], int] = {}  # a forward's checkpoints: by what has gradients, steps from one to the next
        self._bound = program.bind()
        self._modes: dict[Mode, Any] = {}
        self._shared = {o.name: lies_as(graph, o) for o in graph.outputs if o.name not in program.allocated}

    def run(
        self,
        tensors: Mapping[str, Any],
        into: Mapping[str, Tensor] = {},  # noqa: B006 - never written to
        mode: Mode | None = None,
        checkpoints: Mapping[str, Tensor] = {},  # noqa: B006
    ) -> dict[str, Tensor]:
        given = {name: tensors[name] for name in self.names}
        bound = self._bound
        if mode is not None:
            given |= checkpoints
            bound = self._modes.get(mode) or self._modes.setdefault(mode, self.program.bind(mode))  # type: ignore[call-arg]
        if self.device.type == "cuda" and torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device):
                made = bound(given, into)
        else:
            made = bound(given, into)
        for name, like in self._shared.items():
            made[name] = _own(made[name], given, into, given.get(like))
        return made

    def nearer(self, tensors: Sequence[Tensor]) -> dict[int, Tensor]:
        """What a step can bring nearer for the kernels after it, by its place among ``tensors``, as buffers of that kind are (a run's
        ``mode`` says how many): those that lie in memory without gaps, and of each what takes half the cache. Nothing where the step
        cannot."""
        if not tensors or not isinstance(self.program, Executable) or not self.program.brings:
            return {}
        most, lying = cache_bytes(self.device) // 2, {i: t for i, t in enumerate(tensors) if t.is_contiguous() and t.numel()}
        return {i: t.detach().view(-1).view(torch.uint8)[:most].unsqueeze(0) for i, t in lying.items()}

    def direct(
        self, places: Mapping[str, tuple[int, int]], many: bool, mode: Mode | None = None
    ) -> Callable[[Sequence[Any]], Any] | None:
        """A later run as a function of values, without looking at them; None where a run is more than a launch.

        ``places`` says of inputs which of the values each is in, and how many bytes after its start; what is written in place is among
        them. It gives all other results, or their one where not ``many``.
        """
        find = getattr(self._bound if mode is None else self._modes.get(mode), "direct", None)
        overwritten = {o: i for o, i in self.graph.inplace.items() if o in self.outputs}
        if find is None or self._shared or not {*overwritten.values()} <= {*places}:
            return None
        # A buffer that is written in place has two names and one place.
        return find({**places, **{o: places[i] for o, i in overwritten.items()}}, self.results, many)


def _signature(tensors: Mapping[str, Tensor | None]) -> tuple[Any, ...]:
    """What decides a program and its launches: presence, shape, strides, dtype and device of every tensor."""
    return tuple([None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors.values()])


def _places(into: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What a signature adds for results whose memory is given: launches keep the strides of all that they write, too."""
    return ((*into, _signature(into)),) if into else ()


class Dispatcher:
    """All calls of one op."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self._graphs: dict[Any, Graph] = {}
        self._made: dict[Any, Executable | ReferenceExecutable] = {}
        self._routes: dict[Any, _Route] = {}

    def is_timed(self, axes: Axes) -> bool:
        """Whether a result over these axes changes with time, as the op's first trace says."""
        return self._time in axes

    @functools.cached_property
    def _time(self) -> str:
        return self.op.graph().time

    def again(self, kind: str, names: Sequence[str], tensors: Mapping[str, Tensor | None], options: Mapping[str, Option], many: bool,
              held: Tensor | None = None, state: str = "") -> Callable[[Sequence[Any]], Any] | None:  # fmt: skip
        """A call that was made, a forward or a step, as a function of values that ``names`` names (see ``_Route.direct``)."""
        given = {**tensors, state: held} if state else tensors
        route = self._routes.get((kind, _signature(given), *options.values()))
        return route.direct({name: (i, 0) for i, name in enumerate(names)}, many) if route is not None else None

    def route(self, graph: Graph, tensors: Mapping[str, Tensor]) -> _Route:
        """The program of a graph of the op's own making, such as a step that the language does not say, for these tensors.

        The graph is kept by whoever made it.
        """
        name = (graph.name.removeprefix(f"{self.op.name}_"), id(graph))
        return self._route((graph.name, id(graph), _signature(tensors)), lambda: (name, graph), tensors)

    # -- the three passes -----------------------------------------------------------------------------------------------------

    def _forward(
        self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option], into: Mapping[str, Tensor] = {}  # noqa: B006
    ) -> _Route:
        def make() -> tuple[Any, Graph]:
            variant = self.op.bind(tensors, options)
            return ("forward", variant), self.op.graph_of(variant)

        return self._route(("forward", _signature(tensors), *options.values(), *_places(into)), make, tensors)

    def forward(self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option]) -> list[Tensor]:
        route = self._forward(tensors, options)
        made = route.run(tensors)
        return [made[name] for name in route.outputs]

    def training(
        self,
        tensors: Mapping[str, Tensor | None],
        options: Mapping[str, Option],
        wanted: tuple[str, ...],
        into: Mapping[str, Tensor] = {},  # noqa: B006 - never written to
    ) -> tuple[list[Tensor], dict[str, Tensor], int]:
        """The results, and the checkpoints that the backward will resume from, with their interval, where it can and they cost little.

        ``into`` gives results, by name, the memory to be written to.
        """
        every = self.interval(tensors, options, wanted, into)
        made, left = self.leave(tensors, options, every, into)
        return made, left, every

    def leave(
        self,
        tensors: Mapping[str, Tensor | None],
        options: Mapping[str, Option],
        every: int,
        into: Mapping[str, Tensor] = {},  # noqa: B006 - never written to
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The results, and the checkpoints of every so many steps by name; none for 0."""
        route = self._forward(tensors, options, into)
        # An interval of this route's own is known to do; another comes from a graph that was compiled before.
        known = not every or every in route.intervals.values()
        if not known and not (isinstance(route.program, Executable) and route.program.leaves(every)):
            raise ArgumentError(
                op=f"{self.op.name}_training",
                argument="every",
                value=every,
                limit="the schedule of now leaves no checkpoints of so many steps",
                remedy="A graph compiled for an earlier schedule is compiled again after torch.compiler.reset(), without inductor's cache.",
            )
        made = route.run(tensors, into, mode=Mode(leaves=every) if every else None)
        return [made[name] for name in route.outputs], {name: made[name] for name in made if name not in route.outputs}

    def interval(
        self,
        tensors: Mapping[str, Tensor | None],
        options: Mapping[str, Option],
        wanted: tuple[str, ...],
        into: Mapping[str, Tensor] = {},  # noqa: B006
    ) -> int:
        """Steps between the checkpoints that a forward had better leave where gradients of ``wanted`` will be asked for; 0 for none.

        It looks at sizes, strides and dtypes alone.
        """
        route = self._forward(tensors, options, into)
        every = route.intervals.get(wanted) if wanted else 0
        if every is None:
            every = route.intervals[wanted] = self._interval(route, tensors, options, wanted)
        return every

    def left(self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option], every: int) -> list[tuple[Any, torch.dtype]]:
        """Size and dtype of each tensor of checkpoints that a forward leaves every so many steps."""
        from scanc.torch_ops import check_sizes

        route = self._forward(tensors, options)
        assert isinstance(route.program, Executable)  # nothing else has an interval
        sizes = check_sizes(self.op.name, route.graph, {n: t for n in route.names if (t := tensors[n]) is not None})
        return route.program.left(sizes, every)

    def _interval(
        self, route: _Route, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option], wanted: tuple[str, ...]
    ) -> int:
        """Steps between the checkpoints to leave for a backward by the results over time; 0 where leaving any is not possible or dear."""
        from scanc.torch_ops import check_sizes

        forward = route.program
        if not isinstance(forward, Executable):
            return 0
        given = {k: t for k, t in tensors.items() if t is not None}
        variant = self.op.bind(tensors, {**self.op.options, **options})
        graph = self.op.graph_of(variant)
        names = tuple(o.name for o in graph.outputs if graph.time in o.axes)
        derived = backward(graph, wanted, names)
        cotangents = {f"d_{n}": torch.empty((), dtype=result_dtype(graph, n, given), device=route.device) for n in names}
        present = {str(n.name): {**given, **cotangents}[str(n.name)] for n in derived.inputs}
        sizes = check_sizes(self.op.name, graph, given)
        program = self._compile(("backward", variant, wanted, names), derived, present, sizes, route.device)
        if not isinstance(program, Executable) or not forward.leaves_for(program):
            return 0
        results = sum(math.prod(sizes[a] for a in o.axes) * result_dtype(graph, o.name, given).itemsize for o in graph.outputs)
        held = results + sum(t.numel() * t.element_size() for t in given.values())
        return program.interval if program.worth_leaving(sizes, held) else 0

    def backward(
        self,
        cotangents: Sequence[Tensor | None],
        tensors: Mapping[str, Tensor | None],
        wanted: tuple[str, ...],
        options: Mapping[str, Option],
        checkpoints: Mapping[str, Tensor] = {},  # noqa: B006 - never written to
        every: int = 0,
        into: Mapping[str, Tensor] = {},  # noqa: B006
        last: bool = False,
    ) -> dict[str, Tensor]:
        """Gradients by name, in the memory that ``into`` gives them, if any.

        ``checkpoints`` are what the forward left ``every`` so many steps; a program of other tiles ignores them. Where nobody reads them
        after this, ``last``, they may be overwritten.
        """
        if not wanted:
            return {}
        # Autograd's own may be views that are conjugated or negated only when they are read, which kernels would not know.
        come = [c if c is None else c.resolve_conj().resolve_neg() for c in cotangents]
        given = {**tensors, **dict(zip(self._cotangent_slots, come, strict=True))}

        def make() -> tuple[Any, Graph]:
            variant = self.op.bind(tensors, {**self.op.options, **options})
            forward = self.op.graph_of(variant)
            names = tuple(o.name for o, c in zip(forward.outputs, cotangents, strict=True) if c is not None)
            return ("backward", variant, wanted, names), backward(forward, wanted, names)

        route = self._route(("backward", wanted, _signature(given), *options.values(), *_places(into)), make, given)
        if checkpoints and isinstance(route.program, Executable) and route.program.interval == every:
            return route.run(given, into, mode=Mode(resumes=True, consumes=int(last)), checkpoints=checkpoints)
        return route.run(given, into)

    @functools.cached_property
    def _cotangent_slots(self) -> tuple[str, ...]:
        """Names of the cotangents by the results' positions: the graphs' own names for them."""
        return tuple(f"d_{o.name}" for o in self.op.graph().outputs)

    def second(
        self,
        cotangents: Sequence[Tensor | None],
        tensors: Mapping[str, Tensor | None],
        wanted: tuple[str, ...],
        grads: Mapping[str, Tensor],
        options: Mapping[str, Option],
        needs: Sequence[bool],
    ) -> dict[int, Tensor]:
        """Gradients of the backward by its own inputs (position: gradient)."""
        variant = self.op.bind(tensors, {**self.op.options, **options})
        forward = self.op.graph_of(variant)
        come = {f"d_{o.name}": c for o, c in zip(forward.outputs, cotangents, strict=True) if c is not None}
        given = {k: v for k, v in tensors.items() if v is not None} | come
        places = [f"d_{o.name}" for o in forward.outputs] + list(tensors)
        first = backward(forward, wanted, tuple(k.removeprefix("d_") for k in come))
        by = tuple(n for n, need in zip(places, needs, strict=False) if need and first.has_input(n))
        if not by or not grads:
            return {}
        # The second adjoint's cotangents are named after the first's outputs: d_d_u and so on.
        graph = adjoint(first, by, tuple(grads))
        wide = any(t.dtype in (torch.float64, torch.complex128) for t in given.values())
        out = evaluate(graph, {**given, **{f"d_{k}": v for k, v in grads.items()}}, dtype=torch.float64 if wide else torch.float32)
        return {places.index(n): out[f"d_{n}"].to(given[n].dtype) for n in by}

    def step_graph(self, state: str, held: Tensor, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option]) -> Graph:
        variant = self._step_variant(state, held, tensors, options)
        return self._graph(("step", variant), lambda: step_pass(self.op.graph_of(variant)))

    def step(self, state: str, held: Tensor, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option]) -> list[Tensor]:
        given = {**tensors, state: held}

        def make() -> tuple[Any, Graph]:
            variant = self._step_variant(state, held, tensors, options)
            graph = self._graph(("step", variant), lambda: step_pass(self.op.graph_of(variant)))
            if state not in graph.inplace.values():
                raise UnsupportedForm(
                    op=self.op.name,
                    form="step",
                    forms=", ".join(self.op.forms()),
                    reason="its last state is not returned, so none can be carried on",
                )
            return ("step", variant), graph

        route = self._route(("step", _signature(given), *options.values()), make, given)
        made = route.run(given, {o: held for o, i in route.graph.inplace.items() if i == state})
        return [made[name] for name in route.results]

    def _step_variant(self, state: str, held: Tensor, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option]) -> Variant:
        """Binds a step's tensors: an argument over time has one axis fewer here."""
        from scanc.op import kind_of_dtype

        time = self._time
        lifted: dict[str, Tensor | None] = {state: held}
        for a in self.op.arguments:
            t = tensors.get(a.name)
            if a.name == state or t is None:
                continue
            for alternative in a.alternatives:
                here = tuple(x for x in alternative.axes if x != time)
                if alternative.kind == kind_of_dtype(t.dtype) and len(here) == t.dim():
                    lifted[a.name] = t.unsqueeze(alternative.axes.index(time)) if time in alternative.axes else t
                    break
            else:
                shapes = " or ".join(f"{x.kind} ({' '.join(y for y in x.axes if y != time)})" for x in a.alternatives)
                raise ArgumentError(
                    op=self.op.name + ".step",
                    argument=a.name,
                    value=f"{t.dtype} of shape {tuple(t.shape)}",
                    limit=f"it must be {shapes}",
                    remedy="A step's inputs have no time axis.",
                )
        return self.op.bind({a.name: lifted.get(a.name) for a in self.op.arguments}, options)

    # -- compiling and running ------------------------------------------------------------------------------------------------

    def _graph(self, key: Any, make: Any) -> Graph:
        if key not in self._graphs:
            self._graphs[key] = make()
        return self._graphs[key]

    def _route(self, key: Any, make: Callable[[], tuple[Any, Graph]], tensors: Mapping[str, Tensor | None]) -> _Route:
        """The program for tensors of these shapes and dtypes; checked and chosen the first time they are seen."""
        found = self._routes.get(key)
        if found is not None:
            return found
        from scanc.torch_ops import check_sizes

        name, graph = make()
        given = {str(n.name): tensors[str(n.name)] for n in graph.inputs}
        present = {k: v for k, v in given.items() if v is not None}
        sizes = check_sizes(self.op.name, graph, present)
        device = next(iter(present.values())).device
        if len(self._routes) >= _MOST_ROUTES:
            self._routes.clear()
        route = self._routes[key] = _Route(graph, self._compile(name, graph, present, sizes, device), device)
        return route

    def _compile(
        self, key: Any, graph: Graph, given: Mapping[str, Tensor], sizes: Mapping[str, int], device: torch.device
    ) -> Executable | ReferenceExecutable:
        empty = any(s == 0 for s in sizes.values())
        wide = any(t.dtype in (torch.float64, torch.complex128) for t in given.values())
        if empty or wide:
            return ReferenceExecutable(graph)
        special = specialize(graph, {k: str(v.dtype).removeprefix("torch.") for k, v in given.items()})
        for target, schedule in self._choices(key, special, sizes, device):
            shared = (key, tuple(t.dtype for t in given.values()), target, schedule)
            if shared in self._made:
                return self._made[shared]
            try:
                program = compile_graph(special, target, schedule, sizes=sizes)
            except (UnsupportedForm, BackendUnavailable) as error:
                tell_once("warning", f"{self.op.name} ({key[0]}) does not run on {target}: {error}")
                continue
            self._made[shared] = program
            return program
        return ReferenceExecutable(graph)

    def _choices(self, key: Any, graph: Graph, sizes: Mapping[str, int], device: torch.device) -> list[tuple[Target, Schedule | None]]:
        """(target, schedule) in order of preference."""
        usable = targets_of(device)
        found: list[tuple[Target, Schedule | None]] = []
        tuned = _tuned(graph, self.op.name, str(key[0]), sizes, usable, device)
        if tuned is not None:
            found.append(tuned)
        elif usable[0].backend != "reference":
            where, remedy = runtime.device_name(device), f"`scanc tune {self.op.name}` finds its fastest schedule"
            tell_once("info", f"{self.op.name} ({key[0]}) is untuned on {where}; {remedy}")
        own = [(target, None if target.backend == "reference" else default_schedule(graph, target, sizes)) for target in usable]
        # Matrix products and tiles side by side go before steps, whichever backend prints them.
        return [*found, *sorted(own, key=lambda choice: not _side_by_side(choice[1]))]


def _side_by_side(schedule: Schedule | None) -> bool:
    """Whether a schedule takes many steps at once: by matrix products, or with nothing carried from one to the next."""
    by_products = isinstance(schedule, ConvolutionSchedule) and schedule.route != "fft"
    return by_products or isinstance(schedule, ChunkedSchedule | StencilSchedule)


def _tuned(
    graph: Graph, op: str, pass_: str, sizes: Mapping[str, int], usable: Sequence[Target], device: torch.device
) -> tuple[Target, Schedule] | None:
    """The fastest schedule known for this graph and shape, over all the backends that can serve here."""
    from scanc.autotune.records import default_store, exact_axes, graph_key

    kernels = [t for t in usable if t.backend != "reference"]
    if not kernels:
        return None
    store, name = default_store(), runtime.device_name(device)
    dtype = graph.inputs[0].type.dtype
    return store.fastest(
        device=name, op=op, pass_=pass_, key=graph_key(graph), dtype=dtype, case=sizes, exact=exact_axes(graph), time=graph.time,
        targets=kernels, default=functools.partial(default_schedule, graph),
    )


def _own(x: Tensor, given: Mapping[str, Tensor], into: Mapping[str, Tensor], like: Tensor | None) -> Tensor:
    """A result that is its own memory, in the order of ``like``: outputs never alias inputs, but for what is written in place."""
    from scanc.torch_ops import in_order_of

    if any(x is y for y in into.values()):
        return x
    x = x.contiguous() if like is None else in_order_of(like, x)
    if x.numel() and any(x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for y in given.values()):
        return x.clone()
    return x


__all__ = ["Dispatcher", "result_dtype", "targets_of", "tell_once"]
