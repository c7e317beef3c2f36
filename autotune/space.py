"""The space of schedules to search, derived from the graph, the target and the sizes.

Nothing here knows an op. What a field may be follows from what the field is about: lanes from the innermost parallel axis,
``split`` from the state's size, ``tile`` and ``history`` from the length, ``segment`` from the length and from how much parallelism
the lanes alone leave unused, ``walk`` from whether the graph sums over lanes, ``warps`` from the target. A field this module
has never heard of is searched around its default, or over ``metadata["choices"]`` where the schedule's dataclass says so.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.plan import innermost_lane, lane_axes
from scanc.ir import Graph
from scanc.runtime import cpu_cores
from scanc.schedule import ConvolutionSchedule, Schedule
from scanc.target import Target

Value = int | bool | str

# Lanes beside each other that fill one processor, so that segments of time have nothing to add.
ENOUGH_LANES = {"cuda": 512, "hip": 512, "cpu": 64}
# Values of the state one GPU thread may hold in registers (Triton's own temporaries double them), and a CPU tile in its nearest cache.
THREAD_VALUES = {"cuda": 128, "triton": 64}
TILE_VALUES = 8192


@dataclass(frozen=True)
class Facts:
    """What of a graph, a target and sizes decides a schedule's range."""

    target: Target
    length: int
    lane: int
    parallel: int
    state: int
    two_ways: bool
    sums_lanes: bool

    @classmethod
    def of(cls, graph: Graph, target: Target, sizes: Mapping[str, int]) -> Facts:
        """``sizes`` gives every axis of the graph but the time axis of a step graph."""
        lane, nodes = innermost_lane(graph), graph.nodes()
        directions = {bool(n.attrs["reverse"]) for n in nodes if n.op == "scan"}
        return cls(
            target=target,
            length=sizes.get(graph.time, 1),
            lane=sizes.get(lane, 1),
            parallel=math.prod(sizes.get(a, 1) for a in lane_axes(graph)),
            state=math.prod(sizes.get(a, 1) for a in graph.state),
            two_ways=len(directions) > 1,
            sums_lanes=any(n.op == "sum" and lane in n.args[0].axes and lane not in n.axes for n in nodes),
        )

    @property
    def processors(self) -> int:
        return self.target.places or cpu_cores()  # only a hint of how many blocks keep the device busy


def powers(low: int, high: int) -> tuple[int, ...]:
    """The powers of two from ``low`` to ``high``, both included where they are one.

    Before -> after:  powers(3, 20)  ->  (4, 8, 16)
    """
    first = 1 << max(0, low - 1).bit_length()
    return tuple(first << i for i in range(max(0, (high // first).bit_length())))


def _up(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _around(value: int, factor: int, most: int) -> tuple[int, ...]:
    """Powers of two within ``factor`` of ``value``, none over ``most`` but ``value`` itself."""
    return tuple(sorted({value, *powers(max(1, value // factor), min(value * factor, most))}))


def _lanes(f: Facts, default: int) -> tuple[int, ...]:
    return tuple(sorted({default, *powers(1, min(_up(f.lane), 512))}))


def _split(f: Facts, default: int) -> tuple[int, ...]:
    return powers(1, min(32, _up(f.state))) if f.target.backend == "cuda" else (default,)


def _tile(f: Facts, default: int) -> tuple[int, ...]:
    return _around(default, 8, _up(f.length))


def _history(f: Facts, default: int) -> tuple[int, ...]:
    if f.target.backend == "cuda":  # the steps walked at once, in either case
        return powers(2, min(16, _up(f.length)))
    return _around(default, 8, _up(f.length)) if f.two_ways else (default,)


def _segment(f: Facts, default: int) -> tuple[int, ...]:
    """Whole, or 2 to 64 segments where the lanes alone cannot fill the device."""
    if f.parallel >= ENOUGH_LANES[f.target.kind] * f.processors:
        return tuple(sorted({0, default}))
    return tuple(sorted({0, default, *powers(max(16, f.length // 64), f.length // 2)}))


def _walk(f: Facts, default: int) -> tuple[int, ...]:
    return tuple(sorted({default, *powers(1, min(16, f.lane))})) if f.sums_lanes else (default,)


def _warps(f: Facts, default: int) -> tuple[int, ...]:
    return tuple(sorted({default, 1, 2, 4, 8})) if f.target.backend == "triton" and f.target.kind != "cpu" else (default,)


def _stages(f: Facts, default: int) -> tuple[int, ...]:
    return (1, 2) if f.target.backend == "cuda" else (default,)


def _blocks(f: Facts, default: int) -> tuple[int, ...]:
    return tuple(sorted({default, 0, 1, 2, 3, 4, 8})) if f.target.backend == "cuda" else (default,)


def _helpers(f: Facts, default: int) -> tuple[int, ...]:
    return tuple(sorted({default, 0, 1, 2, 4})) if f.target.backend == "cuda" and not f.two_ways else (default,)


FIELDS: dict[str, Callable[[Facts, int], tuple[int, ...]]] = {
    "lanes": _lanes, "split": _split, "tile": _tile, "history": _history, "segment": _segment, "walk": _walk, "stages": _stages,
    "blocks": _blocks, "helpers": _helpers,
    "warps": _warps,
}


def _choices(field: dataclasses.Field[Any], default: Value, facts: Facts) -> tuple[Value, ...]:
    if field.name.startswith(("chunk_", "total_")) and not facts.two_ways:
        return (default,)
    if "choices" in field.metadata:
        given = tuple(field.metadata["choices"])
        return given if default in given else (default, *given)
    if field.name in FIELDS and isinstance(default, int):
        return FIELDS[field.name](facts, default)
    if isinstance(default, bool):
        return (False, True)
    if isinstance(default, int) and default > 0 and default & (default - 1) == 0:
        return _around(default, 4, max(default, _up(f) if (f := facts.length) > 1 else default))
    return (default,)


def _of_route(values: Mapping[str, Value]) -> dict[str, Value]:
    """Field values of form convolution with what a route has none of, or less of, at the nearest that it has."""
    made, route = dict(values), values.get("route")
    if route == "toeplitz":
        made["rows"] = max(16, int(made.get("rows", 16)))
        made["operands"] = "float16" if made.get("operands") == "float32" else made.get("operands", "float16")
    elif route in ("monarch", "passes", "radix"):
        made |= {name: min(most, int(made.get(name, 1))) for name, most in (("rows", 4), ("outer", 128), ("ahead", 1))}
    if route == "passes":
        made |= {"rows": 1, "walk": 1, "ahead": 0, "operands": "float32" if made.get("operands") == "float32" else "float16"}
    if route == "radix":
        made |= {"rows": 1, "ahead": 0, "operands": "float32"}
    if route == "direct":
        made |= {"rows": min(16, int(made.get("rows", 4))), "inner": 64, "operands": "float16", "ahead": 0}
    return made


def _anything(schedule: Schedule) -> bool:
    return True


@dataclass(frozen=True)
class FormSpace:
    """Every schedule of one form on one target: a grid of ``choices`` less what cannot be built or cannot fit.

    ``runs``  whether the backend prints a kernel for a schedule: its own rules, asked only of what is about to be tried
    """

    target: Target
    form: str
    default: Schedule
    choices: Mapping[str, tuple[Value, ...]]
    facts: Facts
    runs: Callable[[Schedule], bool] = dataclasses.field(default=_anything, compare=False)

    @property
    def name(self) -> str:
        return f"{self.target.name}/{self.form}"

    @property
    def size(self) -> int:
        """Points of the grid, those that cannot be built included."""
        return math.prod(len(c) for c in self.choices.values())

    def schedule(self, values: Mapping[str, Value]) -> Schedule | None:
        """The schedule with these field values, the default's where none is given; None where no such one can run."""
        try:
            made = dataclasses.replace(self.default, **(_of_route(values) if self.form == "convolution" else values))
        except ScheduleError:
            return None
        return made if made == self.default or fits(made, self.facts) else None

    def taken_over(self, schedule: Schedule) -> Schedule | None:
        """A schedule from elsewhere as it is; None where it cannot run here."""
        return self.schedule(_values(schedule))

    def adapted(self, schedule: Schedule) -> Schedule | None:
        """A schedule from elsewhere on this grid, each field at the choice nearest to its own; as it is where that cannot be."""
        values = _values(schedule)
        near = {name: options[0] if len(options) == 1 else _nearest(values[name], options) for name, options in self.choices.items()}
        return self.schedule(near) or self.taken_over(schedule)

    def neighbours(self, schedule: Schedule) -> Iterator[Schedule]:
        """Schedules one choice up or down in a single field."""
        for name, options in self.choices.items():
            value = getattr(schedule, name)
            at = options.index(value) if value in options else None
            for near in ([at - 1, at + 1] if at is not None else range(len(options))):
                if 0 <= near < len(options):
                    made = self.schedule({**_values(schedule), name: options[near]})
                    if made is not None:
                        yield made

    def sample(self, rng: random.Random) -> Schedule | None:
        return self.schedule({name: rng.choice(options) for name, options in self.choices.items()})


def _nearest(value: Value, options: tuple[Value, ...]) -> Value:
    """The option next to ``value`` by ratio; 0, which stands for a form's own choice, is near nothing but itself."""
    if value in options or isinstance(value, str | bool):
        return value if value in options else options[0]
    if not value:
        return 0 if 0 in options else options[0]
    numbers = [o for o in options if not isinstance(o, str) and o]
    return min(numbers, key=lambda o: abs(math.log2(o / value)), default=options[0])


def _values(schedule: Schedule) -> dict[str, Value]:
    return {f.name: getattr(schedule, f.name) for f in dataclasses.fields(schedule)}


def fits(schedule: Schedule, facts: Facts) -> bool:
    """Whether a schedule's tile can fit the target at all: threads of a block, values a thread or a CPU tile holds.

    Rough on purpose: it only spares compiling what is certain to lose. Registers are counted by screen.py.
    """
    values = _values(schedule)
    if isinstance(schedule, ConvolutionSchedule):  # torch's FFT has one way
        if schedule.route == "fft" or facts.target.backend != "triton":
            return False
        held = facts.target.warp * schedule.warps * 256
        if schedule.route == "monarch":  # both parts of a spectrum, and of what it is multiplied by
            return 4 * schedule.block * schedule.rows <= held
        if schedule.route == "passes":  # at least one power of two of columns' points, and no more than one product takes
            return 8 * schedule.block < facts.length <= 128 * schedule.block and 4 * schedule.block <= held
        # A tile of sums, and one that it is made of; tap by tap only where there are few.
        few = schedule.route == "toeplitz" or facts.length <= 4 * schedule.outer
        return few and 2 * schedule.outer * schedule.rows <= held
    lanes, split, walk = (int(values.get(name, 1)) for name in ("lanes", "split", "walk"))
    tile = int(values.get("tile", 1)) if schedule.form == "associative" else 1
    if walk > 1 and lanes * walk > _up(facts.lane):
        return False
    if facts.target.kind == "cpu":
        return lanes * facts.state * tile <= TILE_VALUES
    if facts.target.backend == "cuda" and schedule.form == "stencil":
        share = lanes * int(values["tile"]) / (facts.target.warp * int(values["warps"]))
        return 4 <= share <= 64 and int(values["across"]) * int(values["deep"]) <= 64
    if facts.target.backend == "cuda":
        return facts.target.warp <= lanes * split <= 1024 and facts.state <= split * THREAD_VALUES["cuda"]
    threads = facts.target.warp * int(values.get("warps", 4))
    if schedule.form == "chunked":
        return int(values["heads"]) * int(values["rows"]) * facts.state <= threads * THREAD_VALUES["triton"] * 2
    # Fewer values than threads make threads repeat one another's work.
    return threads <= 2 * lanes * facts.state * tile <= 2 * threads * THREAD_VALUES["triton"]


def prints(graph: Graph, target: Target, state: int, schedule: Schedule) -> bool:
    """Whether the target's backend has a kernel for this schedule: its source is made, which needs no device and no compiler."""
    from scanc.compiler import program

    try:
        program(graph, target, schedule).source(state)
    except (UnsupportedForm, ScheduleError):
        return False
    return True


def defaults(graph: Graph, target: Target, sizes: Mapping[str, int]) -> dict[str, Schedule]:
    """The compiler's own schedule of every form that this graph has on this target."""
    from scanc.compiler import default_schedule, forms_of

    if target.backend == "reference":
        return {}
    # A graph over time lists step as a form of its op; its step is another graph.
    forms = [f for f in forms_of(graph) if (f == "step") == (not graph.time)]
    found = {form: default_schedule(graph, target, sizes, form) for form in forms}
    return {form: s for form, s in found.items() if prints(graph, target, state_size(graph, sizes), s)}


def state_size(graph: Graph, sizes: Mapping[str, int]) -> int:
    return sizes.get(graph.state[0], 1) if graph.state else 1


def space(graph: Graph, target: Target, sizes: Mapping[str, int], *, form: str | None = None,
          starts: Mapping[str, Schedule] | None = None) -> list[FormSpace]:
    """One grid per form the graph has on ``target``; ``form`` keeps that one alone.

    ``starts``  schedules to build the grids around, in place of the compiler's defaults and the backend's rules
    """
    facts = Facts.of(graph, target, sizes)
    rules = functools.lru_cache(maxsize=4096)(functools.partial(prints, graph, target, state_size(graph, sizes)))
    spaces = []
    for name, default in (defaults(graph, target, sizes) if starts is None else starts).items():
        if form in (None, name):
            choices = {f.name: _choices(f, getattr(default, f.name), facts) for f in dataclasses.fields(default)}
            spaces.append(FormSpace(target, name, default, choices, facts, rules if starts is None else _anything))
    return spaces


def seeds(spaces: list[FormSpace]) -> list[tuple[FormSpace, Schedule]]:
    """What to try first: each form's default, which is also what runs untuned."""
    return [(s, s.default) for s in spaces]
