"""What the kernels of the form chunked are made of: their arguments, what is fixed in their sources, and what has been printed where."""

from __future__ import annotations

from dataclasses import dataclass, field

from scanc.codegen.emit import Names, Parts
from scanc.ir import Node

# The line that the makings of descriptors take the place of.
DESCRIPTORS = "descriptors"
# 2^-160 is 0 in float32: a smaller exponent changes nothing but the rounding of the sums it is part of.
LEAST_EXPONENT = -160.0
# 2^120 times 0 is 0: a larger exponent is none that what follows could hold.
MOST_EXPONENT = 120.0

WORDS = tuple(
    """tl triton Q P BP N BN PT NT HEADS tau sigma p n n_state p_state in_time in_p in_n in_heads causal across ts first rest seg t0 t1 c
    chunks segment segments block blocks i_rows step_back per_group walked before walking at ends padded sums_ptr resets_ptr here e g enter
    leave resets CHUNKS place count needed owner pair share""".split()  # noqa: SIM905 - one a word
)
TYPES = {"bfloat16": "tl.bfloat16", "float16": "tl.float16", "float32": "tl.float32"}


@dataclass(frozen=True)
class Argument:
    """A tensor argument: a pointer and a stride per axis. Axes named @… are those of partial results, in front of the result's own.

    ``role``  input, store (a result or its partial results), or inner (contiguous memory between the kernels)
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    role: str

    @property
    def strides(self) -> list[str]:
        return [f"{self.name}_{a.replace('@', 'part_')}" for a in self.axes]


@dataclass(frozen=True)
class Tiles:
    """A tensor descriptor that a launch gives: the parameter, the tensor it is of, and its tiles' steps and width.

    The tensor is a matrix to it, whose rows are steps (axis ``time`` of the tensor; None: rows of ``wide`` values) and whose columns are
    what lies between two steps.
    """

    name: str
    of: str
    time: int | None
    tile: tuple[int, int]
    wide: int = 0


@dataclass(frozen=True)
class ChunkSource:
    """One kernel's source and what calling it takes."""

    name: str
    text: str
    arguments: tuple[Argument, ...]
    numbers: tuple[str, ...]
    warps: int
    registers: int = 0
    language: str = "python"
    bulk: bool = False
    tiles: tuple[Tiles, ...] = ()

    def options(self, kind: str) -> dict[str, int]:
        """What Triton is told beside the source, for a device of this kind."""
        return {"num_warps": self.warps, **({"maxnreg": self.registers} if self.registers and kind == "cuda" else {})}

    @property
    def entry(self) -> str:
        return f"{self.name}_kernel"


@dataclass(frozen=True)
class Shape:
    """What is fixed in the source: rows, columns, the heads a program has, the dtype of products' operands, how float32 ones round,
    whether tiles go through tensor descriptors (``bulk``), and whether those are ``given`` with a launch: else every program makes its own,
    which takes it a microsecond each; and whether one program of all chunks' kernels has every head of a group (``lone``)."""

    rows: int
    columns: int
    heads: int = 1
    operands: str = "float32"
    precision: str = "ieee"
    bulk: bool = False
    given: bool = False
    lone: bool = False


@dataclass
class Scope:
    """What has been printed at one place: names of values, of tiles in their stored dtype, and of products."""

    names: Names
    suffix: str = ""
    head: str = ""
    known: dict[Node, Parts] = field(default_factory=dict)
    made: dict[object, str] = field(default_factory=dict)

    def inner(self) -> Scope:
        """A scope inside this one: it sees what is here and leaves nothing."""
        return Scope(self.names, self.suffix, self.head, dict(self.known), dict(self.made))


class Suffixed(Names):
    """Names of one head's values, unlike those of another's."""

    def __init__(self, taken: Names, suffix: str) -> None:
        super().__init__()
        self._taken, self._suffix = taken._taken, suffix

    def of(self, node: Node) -> str:
        if node not in self._of:
            self._of[node] = self.fresh(f"{node.name or node.op}{self._suffix}")
        return self._of[node]
