"""What the printers of all backends share: names of buffers and indices, which values are whose, which inputs a body reads."""

from __future__ import annotations

from collections.abc import Callable

from scanc.codegen.emit import Dialect, Names, Parts, recurrence
from scanc.codegen.layout import LAUNCH, Buffer, KernelSource, Mode, buffers, in_rows
from scanc.errors import UnsupportedForm
from scanc.forms.plan import Plan, Region, Store
from scanc.ir import Node
from scanc.schedule import Schedule

RESERVED_WORDS = (
    *LAUNCH,
    "program",
    "rest",
    "slot",
    "seg",
    "t0",
    "t1",
    "ts",
    "steps",
    "i",
    "t",
    "n",
    "N",
    "block",
    "lanes",
    "arena",
    "first",
    "part",
    "parts",
)


class KernelPrinter:
    """One plan in one language. Subclasses print loops; here is what they agree on.

    Index names every backend uses: ``i_<axis>`` for grid axes, ``i_group`` for the lanes' group, ``first`` for the first lane
    of the block, ``seg`` for the segment, ``slot`` and ``block`` for the lane slot and the lane tile inside it, ``n`` for the state.
    """

    dialect: Dialect
    divide = "/"  # how the language divides integers
    both = " && "  # ... and joins conditions
    segment = "seg"  # which of what there is of each segment is meant
    cluster = 1  # blocks that add up what they sum over lanes of values with states

    def __init__(self, plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str) -> None:
        self.plan, self.schedule, self.mode, self.title = plan, schedule, mode, title
        self.N = state
        self.buffers = buffers(plan, mode)
        self.of_store = {b.store: b for b in self.buffers if b.store is not None}
        self.of_input = {b.node: b for b in self.buffers if b.role == "input"}
        self.names = Names()
        for word in (*RESERVED_WORDS, *(b.name + "_ptr" for b in self.buffers)):
            self.names.fresh(word)
        self.step = not plan.time
        self.known: dict[Node, Parts] = {}
        self.kept = self._kept()

    def source(self, language: str, text: str) -> KernelSource:
        return KernelSource(
            self.plan.graph.name, language, text, self.plan, self.schedule, self.mode, self.buffers, getattr(self.schedule, "lanes", 1)
        )

    def laned(self, node: Node) -> bool:
        return self.plan.has(node, self.plan.lane)

    def stated(self, node: Node) -> bool:
        return self.plan.has(node, self.plan.state)

    def _kept(self) -> frozenset[Node]:
        """Costly values of both walks, kept from the first to the second beside the states."""
        if not self.plan.recomputed:
            return frozenset()
        both = set(self.plan.recompute_body) & set(self.plan.main_body)
        return frozenset(n for n in both if n.op in ("exp2", "exp") and self.plan.region[n] == Region.SCAN)

    def offset(self, b: Buffer, *, time: str = "", state: str = "") -> str:
        """Where in a buffer this program's block starts, as an expression over strides."""
        terms = []
        for axis in (*b.leading, *b.axes):
            stride = f"{b.name}_{axis.lstrip('@')}" + ("_part" if axis.startswith("@") else "")
            index = self.index_of(axis, b, time, state)
            if index:
                terms.append(stride if index == "1" else f"{index} * {stride}")
        return " + ".join(terms) or "0"

    def index_of(self, axis: str, b: Buffer, time: str, state: str) -> str:
        plan = self.plan
        if axis == "@segment":
            return self.segment
        if axis == "@interval":
            return time  # counted in intervals
        if axis == "@slot":
            slot, slots = "slot", "slots"
            if self.cluster > 1 and b.store is not None and in_rows(plan, b.store):
                slot, slots = (f"({word} / {self.cluster})" for word in (slot, slots))
            return slot if not plan.lane_group or plan.lane_group in b.axes else f"(i_group * {slots} + {slot})"
        if axis.startswith("@"):
            name, group = axis[1:], plan.grid_group(axis[1:])
            return f"(i_{name} % (size_{name} {self.divide} size_{group}))" if group and group in b.axes else self.program_index(name)
        if axis == plan.time:
            return time
        if axis == plan.state:
            return state
        if axis == plan.lane:
            return "first"
        return self.program_index(axis)

    def program_index(self, axis: str) -> str:
        """Which position along an axis a program is at: of a grid axis, or of a group of one or of the lanes."""
        plan = self.plan
        if axis == plan.lane_group:
            return "i_group"
        if axis in plan.grid:
            return f"i_{axis}"
        if plan.graph.groups.get(axis) in plan.grid:
            parent = plan.graph.groups[axis]
            return f"(i_{parent} {self.divide} (size_{parent} {self.divide} size_{axis}))"
        raise UnsupportedForm(
            op=plan.graph.name, form=self.schedule.form, forms="the reference", reason=f"axis '{axis}' is no axis of the recurrence"
        )

    def pointer(self, b: Buffer, part: int, **where: str) -> str:
        return f"{b.name}_ptr + {self.offset(b, **where)}" + (f" + {part}" if part else "")

    def fill(self, node: Node, part: int = 0) -> str:
        """What a shift reads where there is nothing, as a literal; a complex value's is real."""
        value = node.attrs["fill"]
        return self.dialect.literal(float(0 if part else value) if node.kind in ("real", "complex") else value)

    def parts(self, b: Buffer) -> range:
        return range(2 if b.kind == "complex" else 1)

    def owner(self, value: Node, axes: tuple[str, ...]) -> str:
        """The condition under which this program is the one that stores a value it shares with others."""
        plan, conditions = self.plan, []
        for axis in plan.grid:
            if axis not in value.axes:
                group = plan.grid_group(axis)
                conditions.append(
                    f"i_{axis} % (size_{axis} {self.divide} size_{group}) == 0" if group and group in value.axes else f"i_{axis} == 0"
                )
        if plan.lane and plan.lane not in value.axes:
            conditions.append("block == 0")
            if plan.lane_group and plan.lane_group not in value.axes:
                conditions.append("i_group == 0")
        return self.both.join(f"({c})" for c in conditions) if len(conditions) > 1 else "".join(conditions)

    @staticmethod
    def stride_names(b: Buffer) -> list[str]:
        """Names of a buffer's strides, in the order they are passed."""
        return [f"{b.name}_{a.lstrip('@')}" + ("_part" if a.startswith("@") else "") for a in (*b.leading, *b.axes)]

    def axis_stride(self, b: Buffer, axis: str) -> str:
        return f"{b.name}_{axis}"

    def sum_names(self, store: Store) -> tuple[str, ...]:
        base = store.name + "_total"
        suffix = "[n]" if self.stated(store.value) else ""
        return (f"{base}_re{suffix}", f"{base}_im{suffix}") if store.value.kind == "complex" else (f"{base}{suffix}",)

    def loads(self, body: tuple[Node, ...]) -> list[Node]:
        """Time-varying inputs (or shifts of them) that a body reads."""
        shifted = {n.args[0] for n in body if n.op == "shift"}
        read = {a for n in body if n.op != "shift" for a in n.args} | {s.value for s in self.plan.stores}
        return [n for n in body if (n.op == "shift" or (n.op == "input" and (n in read or n not in shifted))) and self.plan.timed(n)]

    def carry_words(self, scan: Node) -> Parts:
        """Names of a scan's carry, without an index."""
        return self.names.parts(scan, "_carry")

    def recurrence_of(self, scan: Node, known: dict[Node, Parts], carry: Parts) -> tuple[list[str], Callable[[Parts], list[str]]]:
        """Expressions of the scan's value at this step, and of its next carry given the value's names."""
        a, b = scan.args[0], scan.args[1]
        zero = b.op == "const" and b.attrs["value"] == 0
        unit = a.op == "const" and a.attrs["value"] == 1
        return recurrence(self.dialect, scan, known[a], known[b], carry, zero, unit)
