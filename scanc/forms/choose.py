"""Which forms a graph has, its transition class, and the schedule it gets where nothing was tuned."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scanc.errors import ScheduleError, UnsupportedForm
from scanc.forms.convolution import ConvolutionPlan, is_convolution
from scanc.forms.convolution_choice import convolution_plan_of, default_convolution
from scanc.forms.cuda_choice import MULTIPROCESSORS, Work, default_cuda
from scanc.forms.lti import backward_plan, lti_plan
from scanc.forms.plan import Plan, ceil_power, innermost_lane, make_plan
from scanc.ir import Graph, Node
from scanc.schedule import (
    AssociativeSchedule,
    ChunkedSchedule,
    ConvolutionSchedule,
    RecurrentSchedule,
    Schedule,
    StencilSchedule,
    StepSchedule,
)
from scanc.target import Target


@dataclass(frozen=True)
class Transition:
    """What a scan's transition depends on. ``name`` is one of: constant, head, key, diagonal, channel."""

    name: str
    meaning: str
    complex: bool


def classify(graph: Graph, scan: Node) -> Transition:
    """The class of one scan, read off the axes of its transition; never declared by the user.

    constant  no time axis                        S4D, H3, retention
    head      time, none of the state's own axes  Mamba-2
    key       time and the contracted state axis, but not every lane axis of the state   gated linear attention
    diagonal  time and every axis of the state    Mamba
    channel   time and channel, no state axis     RG-LRU, HGRN, minGRU
    """
    a, axes = scan.args[0], set(scan.axes)
    state = set(graph.state) & axes
    is_complex = a.kind == "complex"
    if graph.time not in a.axes:
        return Transition("constant", "no time axis: linear and time-invariant", is_complex)
    if not state:
        return Transition("channel", "time and channel; no state axis", is_complex)
    if not state & set(a.axes):
        return Transition("head", "time and head; the state's own axes share it", is_complex)
    if set(a.axes) == axes:
        return Transition("diagonal", "time, channel and state", is_complex)
    return Transition("key", "time and the state axis, shared by the values' axis", is_complex)


def forms_of(graph: Graph) -> tuple[str, ...]:
    """The forms a traced or prepared graph can be evaluated in; () when only the reference can."""
    from scanc.compiler import prepare
    from scanc.forms.chunked_choice import chunked_plan
    from scanc.forms.partition import kernels
    from scanc.lti_chunked import is_lti
    from scanc.passes.step import step

    if not graph.time:
        return ("step",)
    if _convolution_plan(graph) is not None:
        return ("convolution",)
    forms: list[str] = []
    try:
        plans = [make_plan(part) for part in kernels(prepare(graph))]
    except UnsupportedForm:
        return ()
    forms.append("recurrent")
    forms.append("associative" if any(plan.scans for plan in plans) else "stencil")
    if chunked_plan(prepare(graph)) is not None or is_lti(graph):
        forms.append("chunked")
    if _time_invariant(graph) is not None:
        forms.append("convolution")
    try:
        step(graph)
    except UnsupportedForm:
        return tuple(forms)
    return (*forms, "step")


def default_schedule(graph: Graph, target: Target, sizes: Mapping[str, int], form: str | None = None) -> Schedule:
    """The schedule used where nothing was tuned: plain sense about the target, refined by ``sizes`` where they are known."""
    state = sizes.get(graph.state[0], 16) if graph.state else 1
    two_ways = len({n.attrs["reverse"] for n in graph.nodes() if n.op == "scan"}) > 1
    wanted = form or ("step" if not graph.time else "recurrent")
    if wanted == "step":
        return _step(graph, target, sizes, state)
    convolution = _convolution_plan(graph) if form in (None, "convolution") else None
    if wanted == "convolution" and convolution is None:
        convolution = _time_invariant(graph)
    if convolution is not None or wanted == "convolution":
        return default_convolution(convolution, target, sizes) if convolution is not None else ConvolutionSchedule(route="fft")
    if wanted == "associative":
        return _associative(graph, target, sizes, state, two_ways)
    patched = _patch_plan(graph) if target.backend == "cuda" and form in (None, "stencil") else None
    if patched is not None:
        return _patches(graph, patched, sizes)
    if target.backend == "cpp" and form in (None, "stencil") and _has_rows(graph):
        # Rows divided between a processor's cores, some for each; gradients of weights add up so many partial results.
        rows = sizes.get(graph.time, 1 << 12) * (_parallel(graph, sizes) if sizes else 1)
        return StencilSchedule(lanes=1, tile=1, segment=max(1, -(-rows // 64)))
    if wanted == "stencil" or (form is None and target.backend == "triton" and not any(n.op == "scan" for n in graph.nodes())):
        return _stencil(graph, target, sizes, state)
    if wanted == "chunked" or (form is None and target.backend == "triton" and target.kind != "cpu"):
        chunked = _chunked(graph, target, sizes)
        if chunked is not None or form is not None:
            return chunked or ChunkedSchedule()
    return _recurrent(graph, target, sizes, state, two_ways)


def _convolution_plan(graph: Graph) -> ConvolutionPlan | None:
    """The plan of form convolution where the graph has that form, and with it no other."""
    from scanc.compiler import prepare

    return convolution_plan_of(prepare(graph)) if is_convolution(graph) else None


def _time_invariant(graph: Graph) -> ConvolutionPlan | None:
    """The plan of a recurrence whose transition has no time axis, as the convolution it is."""
    from scanc.compiler import prepare

    if not any(n.op == "scan" for n in graph.nodes()):
        return None
    try:
        return convolution_plan_of(lti_plan(prepare(graph)).graph if graph.origin is None else prepare(backward_plan(graph)[1]))
    except UnsupportedForm:
        return None


def _chunked(graph: Graph, target: Target, sizes: Mapping[str, int]) -> ChunkedSchedule | None:
    """The schedule of form chunked where the graph has that form: matrix products beat steps wherever they apply."""
    from scanc.compiler import prepare
    from scanc.forms.chunked_choice import chunked_plan, default_chunked

    plan = chunked_plan(prepare(graph)) if any(n.op == "scan" for n in graph.nodes()) else None
    return default_chunked(plan, target, sizes) if plan is not None else None


def _step(graph: Graph, target: Target, sizes: Mapping[str, int], state: int) -> StepSchedule:
    if target.kind == "cpu" and target.backend == "cpp":
        return StepSchedule(lanes=16)
    if target.backend == "cuda":
        product = _product(graph, sizes, state) if target.capability >= 80 else None
        if product is not None:
            return product
        # 32 bytes of a lane's state a thread; of many states, two lanes'.
        split = min(32, ceil_power(-(-state // (8 if state <= 32 else 16))))
        walk = 2 if state > 32 else 1
        return StepSchedule(lanes=max(1, 128 // split) * (1 if _rows_share(graph) else walk), split=split, walk=walk)
    held = ceil_power(state)
    if held >= 64:
        return StepSchedule(lanes=max(1, min(64, 8192 // held)), warps=8)
    return StepSchedule(lanes=max(1, min(64, 2048 // held)), warps=4)


def _product(graph: Graph, sizes: Mapping[str, int], state: int) -> StepSchedule | None:
    """The schedule of a step that multiplies a small batch with a weight: 16 KB of that a warp, its half on the way at once."""
    from scanc.codegen.cuda_product import LANES, product_of
    from scanc.compiler import prepare
    from scanc.forms.partition import partition

    try:
        plan = make_plan(partition(prepare(graph)).kernel)
    except UnsupportedForm:
        return None
    if product_of(plan) is None:
        return None
    pieces = -(-state // 64)
    # Few blocks have many warps each.
    warps = 16 if sizes.get(plan.lane, 1 << 12) < 1024 else max(2, pieces // 8)
    warps = min(16, ceil_power(warps), ceil_power(pieces))
    batch = sizes.get(plan.grid[0], 16)
    rows = 8 if batch <= 8 else 16
    blocks = -(-sizes.get(plan.lane, 1 << 12) // LANES) * -(-batch // rows)
    walk = min(4, ceil_power(-(-pieces // warps)))
    # Four pieces on their way leave registers for 512 threads of a multiprocessor, two for 640: better than a few blocks left to the end.
    turns = {at_once: -(-blocks // (MULTIPROCESSORS * max(1, threads // (32 * warps)))) for at_once, threads in ((4, 512), (2, 640))}
    return StepSchedule(lanes=LANES, split=2 * warps, walk=2 if walk == 4 and turns[2] < turns[4] else walk, rows=rows)


def _rows_share(graph: Graph) -> bool:
    """Whether a step's thread takes rows of the batch, where it takes several of anything."""
    from scanc.codegen.layout import walked_axis
    from scanc.compiler import prepare
    from scanc.forms.partition import partition

    try:
        plan = make_plan(partition(prepare(graph)).kernel)
    except UnsupportedForm:
        return False
    return walked_axis(plan) != plan.lane


def _parallel(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Lanes in all: what can run side by side without splitting time."""
    total = 1
    for axis in graph.lanes:
        if axis not in graph.groups:
            total *= max(1, sizes.get(axis, 1))
    return total


def _segment(graph: Graph, sizes: Mapping[str, int], enough: int, step: int) -> int:
    """Steps of a segment such that lanes × segments reach ``enough``; 0 where they do anyway."""
    length, lanes = sizes.get(graph.time, 0), _parallel(graph, sizes)
    if not length or lanes >= enough:
        return 0
    pieces = min(-(-enough // lanes), max(1, length // (2 * step)))
    if pieces < 2:
        return 0
    longest = -(-length // pieces)
    return -(-longest // step) * step


def _walk(graph: Graph, sizes: Mapping[str, int], lanes: int, programs: int) -> int:
    """Lane tiles one block walks, so that about ``programs`` blocks remain."""
    blocks = max(1, _parallel(graph, sizes) // lanes)
    return max(1, blocks // programs)


def _sums_over_lanes(graph: Graph) -> bool:
    """Whether time-long results are summed over lanes (dB, dC): then each lane slot costs memory."""
    return any(o.node.op == "sum" and graph.time in o.axes for o in graph.outputs)


def _recurrent(graph: Graph, target: Target, sizes: Mapping[str, int], state: int, two_ways: bool) -> RecurrentSchedule:
    if target.backend == "cpp":
        walk = _walk(graph, sizes, 16, 64) if _sums_over_lanes(graph) else 1
        return RecurrentSchedule(lanes=16, tile=64, history=64 if state <= 32 else 16, walk=walk)
    width = sizes.get(innermost_lane(graph), 64)
    if target.backend == "cuda":
        words = state * (2 if any(n.op == "scan" and n.kind == "complex" for n in graph.nodes()) else 1)
        many = 1 << 30
        work = Work(_parallel(graph, sizes) if sizes else many, width, max(1, sizes.get(graph.time, many)), words)
        fits = functools.partial(_has_room, graph, target, state)
        return _fitting(graph, target, default_cuda(graph, target, sizes, work, two_ways=two_ways, fits=fits), state)
    # Triton: 4 states a thread leave registers for several blocks a multiprocessor, which hide the latency of a step's loads.
    lanes = max(1, min(64, ceil_power(width), 512 // ceil_power(state)))
    return RecurrentSchedule(
        lanes=lanes,
        tile=1,
        history=32,
        segment=_segment(graph, sizes, MULTIPROCESSORS * 128, 256),
        warps=max(1, min(4, lanes * ceil_power(state) // 128)),
    )


def _plans(graph: Graph) -> list[Plan]:
    """Of every kernel of a graph. Raises UnsupportedForm."""
    from scanc.compiler import prepare
    from scanc.forms.partition import kernels
    from scanc.passes.specialize import specialize

    dtypes = {"real": "float32", "complex": "complex64", "int": "int32", "bool": "bool"}
    concrete = specialize(graph, {str(n.name): dtypes.get(n.type.dtype, n.type.dtype) for n in graph.inputs})
    return [make_plan(part) for part in kernels(prepare(concrete))]


def _has_room(graph: Graph, target: Target, state: int, schedule: RecurrentSchedule) -> bool:
    """Whether all of a graph's kernels can be made by a schedule, on a GPU with the shared memory of those that were timed."""
    from scanc.codegen.build_cuda import generate
    from scanc.codegen.cuda import SHARED_LIMIT
    from scanc.codegen.layout import Mode

    if target.shared_bytes < SHARED_LIMIT:
        return False
    try:
        made = [generate(plan, schedule, state if plan.state else 1, Mode(), "") for plan in _plans(graph)]
    except (ScheduleError, UnsupportedForm):
        return False
    return all(source.shared <= target.shared_bytes - 256 for source in made)


def _fitting(graph: Graph, target: Target, schedule: RecurrentSchedule, state: int) -> RecurrentSchedule:
    """The schedule made smaller, what is least missed first, until a block's shared memory is what the target gives."""
    from scanc.codegen.cuda import SHARED_LIMIT, generate
    from scanc.codegen.layout import Mode

    tiled = sum(graph.time in n.axes and not set(graph.state) & set(n.axes) for n in graph.inputs)
    if target.shared_bytes >= SHARED_LIMIT and state <= 128 and (not schedule.helpers or tiled <= 4):
        return schedule  # what is chosen above fits there
    try:
        plans = _plans(graph)
    except UnsupportedForm:
        return schedule  # whoever compiles it says why

    def fits(tried: RecurrentSchedule) -> bool:
        try:
            return all(generate(plan, tried, state if plan.state else 1, Mode(), "").shared <= target.shared_bytes - 256 for plan in plans)
        except ScheduleError:
            return False

    while not fits(schedule):
        if schedule.helpers:
            schedule = replace(schedule, helpers=0, lanes=ceil_power(schedule.lanes + 1) // 2)  # without them a power of two
        elif schedule.stages > 1:
            schedule = replace(schedule, stages=1)
        elif schedule.lanes * schedule.split > 64 and schedule.lanes > 1:
            schedule = replace(schedule, lanes=schedule.lanes // 2)
        elif schedule.tile > max(4, schedule.history):
            schedule = replace(schedule, tile=schedule.tile // 2)
        elif schedule.history > 1:
            schedule = replace(schedule, history=schedule.history // 2)
        elif schedule.lanes > 1:
            schedule = replace(schedule, lanes=schedule.lanes // 2)
        else:
            break
    return schedule


def _patch_plan(graph: Graph) -> Plan | None:
    """The plan of the CUDA backend's kernel of form stencil; None where a graph has no such kernel."""
    from scanc.codegen.cuda_stencil import supported
    from scanc.compiler import prepare
    from scanc.forms.partition import partition

    if not graph.time or any(n.op == "scan" for n in graph.nodes()):
        return None
    try:
        plan = make_plan(partition(prepare(graph, shifts=True), at_once=True, shifts=True).kernel, at_once=True)
    except UnsupportedForm:
        return None
    return None if supported(plan) else plan


def _has_rows(graph: Graph) -> bool:
    """Whether the C++ backend has a kernel of form stencil for the graph: a step's contracted axis at once."""
    from scanc.codegen.cpp_rows import supported
    from scanc.compiler import prepare
    from scanc.forms.partition import partition

    if not graph.time or not graph.state or any(n.op == "scan" for n in graph.nodes()):
        return False
    try:
        return not supported(make_plan(partition(prepare(graph), at_once=True).kernel, at_once=True))
    except UnsupportedForm:
        return False


def _patches(graph: Graph, plan: Plan, sizes: Mapping[str, int]) -> StencilSchedule:
    """Two lanes a block, of 2048 steps each in bfloat16, all of whose pieces are asked for at once; more lanes where that leaves fewer
    places of a tile empty. Gradients, and what looks further than a piece, by warps of 512 steps, 32 bytes a thread, that take a tile after
    another; a gradient's in blocks of one warp, which end one by one, since pieces would make more of what it looks at twice.

    Where lanes lie together, 4 of 8 steps a thread, a tile a block; a gradient, which holds several values of each, takes 2, and several
    tiles by 8 warps. The next tile's inputs come nearer meanwhile, which costs no registers.
    """
    from scanc.codegen.cuda_stencil import farthest, piece_steps

    sums, piece, far = any(o.node.op == "sum" for o in graph.outputs), piece_steps(plan), farthest(plan)
    steps, blocks = max(1, sizes.get(graph.time, 1 << 30)), max(1, _parallel(graph, sizes) // 4)
    many = steps * _parallel(graph, sizes) >= MULTIPROCESSORS * 4 * 64 * 256   # a gradient's long segments leave fewer partial sums
    across = {"across": 2 if sums else 4, "deep": 8, "long": 32 if not sums else 256 if many else 128, "ahead": 2}
    if not sums and far <= piece:
        most = 4 * piece * 64
        if steps <= most // 4:
            tile, pieces = max(2 * piece, ceil_power(steps)), 2
        else:
            tile, pieces = min((most, most // 2, most // 4), key=lambda t: (-(-steps // t) * t, -t)), 4
        return StencilSchedule(lanes=128 * pieces * piece // tile, tile=tile, segment=tile, warps=4, pieces=pieces, **across)
    tile = 512 if steps > 256 else 256
    several = 4 if sums else max(1, min(4, steps * blocks // (tile * MULTIPROCESSORS * 4)))  # fewer segments leave fewer partial sums
    segment = min(several * tile, -(-steps // tile) * tile)
    warps, own = 1 if sums else 4, tile // 32
    pieces = own // piece if steps % own and steps % piece == 0 else 1   # a sequence ends with a whole one
    return StencilSchedule(lanes=warps, tile=tile, segment=segment, warps=warps, pieces=pieces, **across)


def _stencil(graph: Graph, target: Target, sizes: Mapping[str, int], state: int) -> StencilSchedule:
    """Tiles of 2048 values, a few lanes of many steps: rows of whole cache lines whichever axis neighbours in memory lie along.

    Where a step's states are held at once, 4096 values, 16 a thread. Sums over time make a block take several tiles.
    """
    sums = any(o.node.op == "sum" for o in graph.outputs)
    steps = sizes.get(graph.time, 1 << 30)
    if state == 1 or not graph.state:
        tile = min(64 if sums else 128, ceil_power(steps))
        return StencilSchedule(lanes=16, tile=tile, segment=min(8 * tile, ceil_power(steps)) if sums else tile, warps=8 if sums else 4)
    held = ceil_power(state)
    if sums and held >= 2048:
        # One step at a time, and the next ones' inputs on their way: two blocks after one another for each multiprocessor.
        segment = max(1, -(-steps * _parallel(graph, sizes) // (MULTIPROCESSORS * 2)))
        return StencilSchedule(lanes=1, tile=1, segment=segment, warps=max(4, min(16, held // 512)), ahead=_ahead(graph, target, held))
    tile = min(max(1, 4096 // held), ceil_power(steps))
    blocks = MULTIPROCESSORS * 8
    segment = -(-steps * _parallel(graph, sizes) // (blocks * tile)) * tile if sums else tile
    return StencilSchedule(lanes=1, tile=tile, segment=segment, warps=max(1, min(16, held * tile // 512)))


def _ahead(graph: Graph, target: Target, held: int) -> int:
    """Steps whose inputs shared memory has room for beside the one at work, 2 at most."""
    if target.kind != "cuda":
        return 0
    width = {"bfloat16": 2, "float16": 2}
    row = held * sum(width.get(n.type.dtype, 4) for n in graph.inputs if graph.time in n.axes and set(graph.state) <= set(n.axes))
    return min(2, target.shared_bytes * 7 // 10 // max(1, row))


def _associative(graph: Graph, target: Target, sizes: Mapping[str, int], state: int, two_ways: bool) -> AssociativeSchedule:

    # The most values of a tile that 128 threads (256 for two directions) hold in registers without spilling.
    values, warps = (2048 if state <= 64 else 1024, 8) if two_ways else (4096, 4)
    tile = max(1, min(64, values // ceil_power(state)))
    lanes = max(1, min(values // (tile * ceil_power(state)), ceil_power(sizes.get(innermost_lane(graph), 64))))
    walk = _walk(graph, sizes, lanes, MULTIPROCESSORS * 4) if _sums_over_lanes(graph) else 1
    return AssociativeSchedule(lanes=lanes, tile=tile, segment=_segment(graph, sizes, MULTIPROCESSORS * 16, 512), walk=walk, warps=warps)
