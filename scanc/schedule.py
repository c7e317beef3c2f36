"""Schedules: one frozen dataclass per form, everything about *how* a form is evaluated and nothing about *what*.

A schedule validates itself on construction, prints as a line that can be pasted back (``RecurrentSchedule(lanes=64, …)``)
and turns into JSON and back. A value of 0 means "the form's own choice" where a field says so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from scanc.errors import ScheduleError


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class Schedule:
    """What all schedules share."""

    form: ClassVar[str] = ""

    def _need(self, field: str, holds: bool, limit: str) -> None:
        if not holds:
            raise ScheduleError(field=field, value=getattr(self, field), limit=limit)

    def to_json(self) -> dict[str, Any]:
        return {"form": self.form, **dataclasses.asdict(self)}

    def __repr__(self) -> str:
        of = [f for f in dataclasses.fields(self) if f.metadata.get("shown", True) or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in of)})"

    @property
    def order(self) -> str:
        """The summation order's signature: two schedules of one order give bit-identical results."""
        return ",".join(f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self) if f.metadata.get("order"))


def _field(default: int, *, order: bool = False, choices: tuple[int, ...] = (), shown: bool = True) -> Any:
    """``shown``: printed whatever its value is; else where that is not its default."""
    metadata = {"order": order, "shown": shown, **({"choices": choices} if choices else {})}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, repr=False)
class RecurrentSchedule(Schedule):
    """Time walked step by step with the state in registers.

    ``lanes``    lanes (positions of the innermost parallel axis, d or p) one block or CPU tile carries; a power of two, but for blocks with
                 ``helpers``, of time whole, which may have any multiple of eight, and with ``span``, any even number
    ``split``    threads the states of one lane are divided over (CUDA); 1 elsewhere
    ``tile``     time steps staged, or unrolled, at once
    ``history``  steps whose states a two-direction graph (a backward) holds at a time: states are kept only at every
                 ``history``-th step and recomputed in between. The CUDA backend walks as many at once in either case
    ``segment``  time steps of one parallel segment, a multiple of ``history`` and ``tile``; 0 keeps time whole
    ``walk``     lane tiles one block walks one after another, summing what is reduced over lanes as it goes
    ``stages``   tiles whose inputs shared memory holds (CUDA): 2 bring the next tile's while one is walked, 1 takes less memory. Helpers
                 bring them so many tiles ahead; with ``span`` 2 lets a block's warps be in different tiles
    ``blocks``   blocks a multiprocessor must hold at once (CUDA): fewer leave more registers to a thread; 0 counts what a thread needs
    ``helpers``  warps a block has beside those that walk (CUDA): they make what the next tile's walk reads and what follows the last one's
                 while a tile is walked. 0: the walking warps do that too, in turn, as they do where sums over time or lanes follow
    ``span``     steps of a thread, where a lane's threads share its time in place of its states (CUDA): then tile / span of them do,
                 ``split`` warps share the states. 0: they share its states
    ``polynomial``  of so many steps one has its exponentials from a polynomial, by multiply-adds in place of the special-function unit
                 (CUDA); 0: none
    ``warps``    warps a block (Triton); the CUDA backend has lanes × split threads and its helpers
    ``interval``  steps between the states that a two-direction kernel resumes from, a multiple of ``tile``: those before the tiles in
                 between are recomputed and kept in shared memory (CUDA). 0: the tile
    ``cluster``  blocks of neighbouring lanes whose sums over lanes of values with states are added up before they go to memory (CUDA, sm_90
                 on); fewer where a group's lane tiles cannot be shared out so
    """

    form: ClassVar[str] = "recurrent"

    lanes: int = _field(16, order=True)
    split: int = _field(1, order=True)
    tile: int = _field(64)
    history: int = _field(64, order=True)
    segment: int = _field(0, order=True)
    walk: int = _field(1, order=True)
    stages: int = _field(2)
    blocks: int = _field(0)
    helpers: int = _field(0)
    span: int = _field(0, order=True)
    polynomial: int = _field(0, order=True)
    warps: int = _field(4, order=True)
    interval: int = _field(0, shown=False)
    cluster: int = _field(1, order=True, shown=False)

    def __post_init__(self) -> None:
        of = 2 if self.span else 8 if self.helpers and not self.segment else 0
        for name in ("lanes", "split", "tile", "history", "warps"):
            free = name == "lanes" and of > 0 and self.lanes > 0 and self.lanes % of == 0
            self._need(name, free or _power_of_two(getattr(self, name)), "it must be a power of two, 1 or more")
        self._need("span", self.span == 0 or (self.span in (4, 8, 16) and self.tile % self.span == 0), "it must be 0, for none, 4, 8 or 16")
        self._need("segment", not (self.span and self.segment), "threads that share a lane's time, with a span, take it whole")
        self._need("walk", self.walk >= 1, "it must be 1 or more")
        self._need("split", self.split <= 32, "the states of a lane are shared within one warp, 32 threads at most")
        self._need("stages", self.stages in (1, 2), "it must be 1 or 2")
        self._need("blocks", 0 <= self.blocks <= 32, "it must be 0, for the kernel's own choice, to 32")
        self._need("helpers", 0 <= self.helpers <= 16, "it must be 0, for none, to 16")
        self._need("interval", self.interval % self.tile == 0 and self.segment % max(self.interval, 1) == 0,
                   "it must be 0, or a multiple of tile that divides segment")
        self._need("cluster", self.cluster in (1, 2, 4, 8), "it must be 1, 2, 4 or 8, the most that every such GPU takes")
        self._need("polynomial", self.polynomial == 0 or _power_of_two(self.polynomial), "it must be 0, for none, or a power of two")
        self._need(
            "segment",
            self.segment >= 0 and self.segment % max(self.tile, self.history) == 0,
            "it must be 0 or a multiple of tile and history",
        )


@dataclass(frozen=True)
class AssociativeSchedule(Schedule):
    """Time taken a tile at once: the pairs (a, b) are combined by an associative scan inside the tile.

    ``lanes``    lanes a block carries; a power of two
    ``tile``     time steps combined at once; a power of two
    ``segment``  time steps of one parallel segment, a multiple of ``tile``; 0 keeps time whole
    ``walk``     lane tiles one block walks one after another
    ``warps``    warps a block
    """

    form: ClassVar[str] = "associative"

    lanes: int = _field(1, order=True)
    tile: int = _field(64, order=True)
    segment: int = _field(0, order=True)
    walk: int = _field(1, order=True)
    warps: int = _field(4, order=True)

    def __post_init__(self) -> None:
        for name in ("lanes", "tile", "warps"):
            self._need(name, _power_of_two(getattr(self, name)), "it must be a power of two, 1 or more")
        self._need("walk", self.walk >= 1, "it must be 1 or more")
        self._need("segment", self.segment >= 0 and self.segment % self.tile == 0, "it must be 0 or a multiple of tile")


@dataclass(frozen=True)
class ChunkedSchedule(Schedule):
    """Time taken a chunk at once by matrix products, the state passed from chunk to chunk.

    Programs that walk time, with their states in registers (all of a forward, and the states of a backward):

    ``chunk``           time steps of a chunk; a power of two, 16 to 256
    ``rows``            positions of the row axis (p) a program carries; a power of two, 16 or more
    ``heads``           heads a program carries side by side, sharing the factors they have in common
    ``segment``         time steps of one parallel segment, a multiple of ``chunk``; 0 keeps time whole
    ``warps``           warps a program
    ``pipeline``        chunks whose loads are in flight at once
    ``registers``       registers a thread may have, so that more programs share a multiprocessor (NVIDIA); 0 leaves it to the compiler

    ``scores``          1 where a forward's products of columns that heads share are made once for all of them, ahead of its walk

    ``walk_back``       1 where a backward's walk of its adjoint gives every head's own values as it goes, if nothing but they need its
                        steps; 0 where programs of all chunks do

    ``span``            chunks of one state that such a backward keeps, 1 or 2: with 2 it moves fewer bytes, and multiplies more

    Programs of all chunks side by side, from the states at the chunks' borders (what a backward reads), those of every head's own
    values and those of what is summed over heads:

    ``chunk_walk``, ``total_walk``          heads a program walks one after another
    ``chunk_warps``, ``total_warps``        warps a program
    ``chunk_pipeline``, ``total_pipeline``  heads whose loads are in flight at once
    """

    form: ClassVar[str] = "chunked"

    chunk: int = _field(64, order=True, choices=(32, 64, 128))
    rows: int = _field(64, choices=(16, 32, 64, 128))
    heads: int = _field(1, choices=(1, 2, 4))
    segment: int = _field(0, order=True)
    warps: int = _field(4)
    pipeline: int = _field(2, choices=(1, 2, 3, 4))
    registers: int = _field(0, choices=(0, 128, 168))
    scores: int = _field(0, choices=(0, 1))
    walk_back: int = _field(0, choices=(0, 1))
    span: int = _field(1, choices=(1, 2))
    chunk_walk: int = _field(8, choices=(4, 8, 16, 20, 32, 40, 64, 80))
    chunk_warps: int = _field(4, choices=(4, 8))
    chunk_pipeline: int = _field(1, choices=(1, 2, 3))
    total_walk: int = _field(16, order=True, choices=(4, 8, 16, 20, 32, 40, 64, 80))
    total_warps: int = _field(4, choices=(4, 8))
    total_pipeline: int = _field(2, choices=(1, 2, 3))

    def __post_init__(self) -> None:
        for name in ("chunk", "rows", "warps", "chunk_warps", "total_warps"):
            self._need(name, _power_of_two(getattr(self, name)), "it must be a power of two, 1 or more")
        self._need("chunk", 16 <= self.chunk <= 256, "matrix products take 16 to 256 steps at once")
        self._need("rows", self.rows >= 16, "matrix products take 16 rows or more")
        for name in ("heads", "chunk_walk", "total_walk"):
            self._need(name, getattr(self, name) >= 1, "it must be 1 or more")
        for name in ("pipeline", "chunk_pipeline", "total_pipeline"):
            self._need(name, 1 <= getattr(self, name) <= 8, "it must be 1 to 8")
        self._need("scores", self.scores in (0, 1), "it must be 0 or 1")
        self._need("walk_back", self.walk_back in (0, 1), "it must be 0 or 1")
        self._need("registers", self.registers in (0, *range(32, 257, 8)), "it must be 0 or a multiple of 8 from 32 to 256")
        self._need("span", self.span in (1, 2), "it must be 1 or 2")
        whole = self.segment >= 0 and self.segment % (self.chunk * self.span) == 0
        self._need("segment", whole, "it must be 0 or a multiple of chunk, and of two chunks where span is 2")


@dataclass(frozen=True)
class ConvolutionSchedule(Schedule):
    """Time convolved with kernels as long as it is.

    ``route``      ``monarch``: transforms as products with small matrices, in one kernel; ``passes``: the same of long sequences, in three
                   passes over memory; ``radix``: float32 transforms in registers (CUDA), with blocks of outer × inner steps;
                   ``toeplitz``: products with tiles of the Toeplitz matrix; ``direct``: tap by tap; ``fft``: torch's FFT, any dtype
                   and device
    ``outer``, ``inner``  points of the two transforms that one of a block of outer × inner steps is made of; powers of two, 16 to 128.
                   Without transforms: steps of a tile of results, 16 to 256, and steps that a product with one tile takes
    ``rows``       rows (positions of axes that share a kernel, the batch) a program takes side by side; toeplitz needs 16
    ``walk``       times it does so, one after another; what a kernel's gradient sums in one place
    ``operands``   what products multiply: ``float16`` (of transforms scaled row by row), ``bfloat16`` as it comes, an eighth as precise and
                   less work, or, for transforms, ``float32``: pairs of float16, three times the work
    ``ahead``      1 loads the next rows' steps while these are transformed (sequences of one block); toeplitz: tiles loaded ahead, 0 to 3
    ``apart``      1 makes kernels' gradients by programs of their own: signals are transformed twice, with registers for each (monarch);
                   or sums them over rows in shared memory in place of registers (radix)
    ``warps``      warps a program
    ``registers``  registers a thread may have (NVIDIA); 0 leaves it to the compiler
    """

    form: ClassVar[str] = "convolution"

    route: str = dataclasses.field(
        default="monarch", metadata={"order": True, "choices": ("monarch", "passes", "radix", "toeplitz", "direct")}
    )
    outer: int = _field(64, order=True, choices=(64, 128, 256))
    inner: int = _field(64, order=True, choices=(16, 32, 64, 128))
    rows: int = _field(1, order=True, choices=(1, 2, 4, 16, 32, 64))
    walk: int = _field(8, order=True, choices=(1, 2, 4, 8, 16, 32))
    operands: str = dataclasses.field(default="float16", metadata={"order": True, "choices": ("float16", "bfloat16", "float32")})
    ahead: int = _field(1, choices=(0, 1, 2, 3))
    apart: int = _field(0, choices=(0, 1))
    warps: int = _field(4, choices=(4, 8))
    registers: int = _field(0, choices=(0, 128, 168))

    def __post_init__(self) -> None:
        self._need("operands", self.operands in ("float16", "bfloat16", "float32"), "it must be float16, bfloat16 or float32")
        tiles = self.route == "toeplitz"
        self._need("operands", not tiles or self.operands != "float32", "tiles of a Toeplitz matrix are float16 or bfloat16")
        self._need("operands", self.route != "radix" or self.operands == "float32", "transforms in registers are float32")
        self._need("operands", self.route != "passes" or self.operands != "bfloat16", "what lies between passes is float16 or float32")
        routes = ("monarch", "passes", "radix", "toeplitz", "direct", "fft")
        self._need("route", self.route in routes, f"it must be one of {', '.join(routes)}")
        transforms = self.route not in ("toeplitz", "direct")
        self._need("ahead", 0 <= self.ahead <= (1 if transforms else 3), "it must be 0 or 1, for tiles of a Toeplitz matrix up to 3")
        self._need("apart", self.apart in (0, 1), "it must be 0 or 1")
        for name, most in (("outer", 128 if transforms else 256), ("inner", 128)):
            points = getattr(self, name)
            self._need(name, _power_of_two(points) and 16 <= points <= most, f"matrix products take 16 to {most} points, a power of two")
        for name in ("rows", "warps"):
            self._need(name, _power_of_two(getattr(self, name)), "it must be a power of two, 1 or more")
        self._need("rows", not tiles or self.rows >= 16, "matrix products take 16 rows or more")
        self._need("walk", self.walk >= 1, "it must be 1 or more")
        self._need("registers", self.registers in (0, *range(32, 257, 8)), "it must be 0 or a multiple of 8 from 32 to 256")

    @property
    def block(self) -> int:
        """Steps that are transformed at once."""
        return self.outer * self.inner


@dataclass(frozen=True)
class StencilSchedule(AssociativeSchedule):
    """Tiles of lanes and time side by side: what looks back a few steps at its inputs and carries nothing.

    ``lanes``    lanes a tile has; a power of two
    ``tile``     time steps a tile has; a power of two
    ``segment``  time steps one block takes, a tile after another, a multiple of ``tile``; 0 takes all
    ``walk``     lane tiles one block walks one after another (Triton)
    ``warps``    warps a block
    ``across``, ``deep``, ``long``  on the CUDA backend, where neighbouring lanes lie together in memory instead of steps: lanes and steps
                 that one thread takes, and the segment. Tiles then have 32 across lanes and warps × deep steps, of 8 warps for fewer than 4
    ``ahead``    tiles whose inputs are on their way while one is computed, for tiles of one step (Triton); on the CUDA backend the next
                 tile's, to registers (1) or to the second-level cache (2)
    ``pieces``   where steps lie together: pieces a thread's steps of a tile are divided into, each beside its neighbours' (CUDA)
    """

    form: ClassVar[str] = "stencil"

    lanes: int = _field(16, order=True)
    tile: int = _field(128, order=True)
    segment: int = _field(128, order=True)
    across: int = _field(2, order=True, choices=(1, 2, 4, 8))
    deep: int = _field(8, order=True, choices=(4, 8, 16))
    long: int = _field(128, order=True)
    ahead: int = _field(0, choices=(0, 1, 2))
    pieces: int = _field(1, order=True, choices=(1, 2, 4))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("across", "deep", "pieces"):
            self._need(name, _power_of_two(getattr(self, name)), "it must be a power of two, 1 or more")
        self._need("long", self.long >= 1, "it must be 1 or more")
        self._need("ahead", 0 <= self.ahead <= 4, "it must be 0 to 4")

    def across_lanes(self) -> StencilSchedule:
        """The schedule for tensors whose neighbours are lanes (CUDA): of eight warps for fewer than four, which look at less of others'."""
        warps = self.warps if self.warps >= 4 else 8
        tile = warps * self.deep
        return dataclasses.replace(self, lanes=32 * self.across, tile=tile, warps=warps, pieces=1, segment=-(-self.long // tile) * tile)


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """One time step: the decode step of a model.

    ``lanes``    lanes a block or CPU tile carries; a power of two
    ``split``    threads the states of one lane are divided over (CUDA); 1 elsewhere
    ``walk``     lanes one thread takes, all of whose states are on their way at once (CUDA): a block has lanes × split / walk threads.
                 Where what is read for each lane and state is shared by the batch (Mamba's A), rows of the batch instead, one after another
    ``warps``    warps a block (Triton)
    ``rows``     rows of a small batch that matrix units multiply with a weight at once, where a step is that product (CUDA): 8, 16 or 32.
                 A block then has 16 lanes, ``split`` threads to each, and every warp ``walk`` pieces of 64 on their way. 0: none
    """

    form: ClassVar[str] = "step"

    lanes: int = _field(64, order=True)
    split: int = _field(1, order=True)
    walk: int = _field(1, choices=(1, 2, 4, 8))
    warps: int = _field(4, order=True)
    rows: int = _field(0, choices=(0, 8, 16, 32))

    def __post_init__(self) -> None:
        for name in ("lanes", "split", "walk", "warps"):
            self._need(name, _power_of_two(getattr(self, name)), "it must be a power of two, 1 or more")
        self._need("rows", self.rows in (0, 8, 16, 32), "it must be 0, 8, 16 or 32")
        self._need("split", self.split <= 32, "the states of a lane are shared within one warp, 32 threads at most")


SCHEDULES: dict[str, type[Schedule]] = {
    s.form: s for s in (RecurrentSchedule, AssociativeSchedule, ChunkedSchedule, ConvolutionSchedule, StencilSchedule, StepSchedule)
}


def schedule_from_json(data: dict[str, Any]) -> Schedule:
    """The schedule that ``Schedule.to_json`` wrote. Raises ScheduleError on an unknown form or field."""
    fields = dict(data)
    form = fields.pop("form", None)
    if form not in SCHEDULES:
        raise ScheduleError(field="form", value=form, limit=f"it must be one of {', '.join(SCHEDULES)}")
    known = {f.name for f in dataclasses.fields(SCHEDULES[form])}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ScheduleError(field=unknown[0], value=fields[unknown[0]], limit=f"form '{form}' has {', '.join(sorted(known))}")
    return SCHEDULES[form](**fields)
