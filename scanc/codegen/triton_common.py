"""What Triton kernels of all forms share: arguments, program numbering, tiles, loads and stores.

A program's values are tiles. Every tile has all dimensions of the form, those a value lacks being of size 1:

    recurrent, step   [LANES, BN]          u: [LANES, 1]      B: [1, BN]      h: [LANES, BN]
    associative       [LANES, BN, TILE]    u: [LANES, 1, TILE]

without the state's when the plan has none. LANES lanes of the innermost parallel axis; BN the state's size N rounded up to a power
of two, its padding loaded as 0 and masked in sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from scanc.codegen.common import KernelPrinter
from scanc.codegen.emit import Body, Parts, Source, atom
from scanc.codegen.layout import LAUNCH, Buffer, KernelSource, Mode, entry_name
from scanc.codegen.triton_language import HELPERS, TritonDialect
from scanc.forms.plan import Plan, Store, ceil_power
from scanc.ir import Node, topological
from scanc.schedule import Schedule

# Names that the loops of any form use.
WORDS = ("tl", "triton", "scratch_ptr", "lane", "tau", "origin", "in_lanes", "in_state", "in_time", "te", "tile", "tiles", "step", "kept",
         "history", "back", "block_part", "BN", "LANES", "TILE", "WALK", "HISTORY", "SIZE")


def argument_names(buffers: Iterable[Buffer], order: Iterable[str], scratch: bool) -> tuple[list[str], list[str], list[str]]:
    """Names of a kernel's pointers, strides and numbers, in the order they are passed."""
    buffers = list(buffers)
    pointers = [f"{b.name}_ptr" for b in buffers] + (["scratch_ptr"] if scratch else [])
    strides = [s for b in buffers for s in KernelPrinter.stride_names(b)]
    return pointers, strides, [*(f"size_{a}" for a in order), *LAUNCH]


def scratch_width(plan: Plan, schedule: Schedule, state: int) -> int:
    """Floats that the carries of one program's recomputed scans take; 0 where nothing is recomputed."""
    lanes, states = getattr(schedule, "lanes", 1), ceil_power(state)
    return sum((lanes if plan.has(s, plan.lane) else 1) * (states if plan.has(s, plan.state) else 1) * (2 if s.kind == "complex" else 1)
               for s in plan.recomputed)


class TritonPrinter(KernelPrinter):
    """One plan as a Triton kernel. Subclasses walk time; ``dims`` names their tile's dimensions in order."""

    divide, both = "//", " & "
    start = "seg * segment"             # the first step of a segment
    specialised: tuple[str, ...] = ()   # numbers that Triton may specialise on being multiples of 16
    dialect: TritonDialect

    whole = False  # whether what is printed is for a tile that no edge of lanes or time cuts

    def __init__(self, plan: Plan, schedule: Schedule, state: int, mode: Mode, title: str, *, timed_tiles: bool = False) -> None:
        super().__init__(plan, schedule, state, mode, title)
        self.dialect = TritonDialect()
        for word in (*WORDS, *HELPERS, *(f"{w}_{a}" for a in plan.graph.order for w in ("i", "size")),
                     *(s for b in self.buffers for s in self.stride_names(b))):
            self.names.fresh(word)
        self.BN = ceil_power(self.N)
        self.walk = int(getattr(schedule, "walk", 1))
        self.dims = ("lane", *(("state",) if plan.state else ()), *(("time",) if timed_tiles else ()))
        self.size_of = {"lane": "LANES", "state": "BN", "time": "TILE"}
        self.axis_of = {"lane": plan.lane, "state": plan.state, "time": plan.time if timed_tiles else ""}
        self.extent = self._extents()
        self.tops: dict[str, str] = {}   # buffer -> the name of its pointer tile at time 0
        lanes, meaning = getattr(schedule, "lanes", 1), f"lanes of {plan.lane or '(none)'} a program carries at a time"
        self.constants: dict[str, tuple[int, str]] = {"LANES": (lanes, meaning)}
        if plan.state:
            self.constants["N"] = (self.N, f"states, axis {plan.state}")
            self.constants["BN"] = (self.BN, "N padded to a power of two")

    def _kept(self) -> frozenset[Node]:
        return frozenset()   # registers are full already: a transition costs less to compute again than to keep

    # -- tiles ----------------------------------------------------------------------------------------------------------------

    def _extents(self) -> dict[Node, frozenset[str]]:
        """Which dimensions of a node's printed tile have more than one entry: broadcasts are left to Triton."""
        found: dict[Node, frozenset[str]] = {}
        for node in topological([*self.plan.scans, *(s.value for s in self.plan.stores)]):
            if node.op in ("input", "shift", "index", "scan", "prior"):
                found[node] = frozenset(d for d, axis in self.axis_of.items() if axis and axis in node.axes)
            else:
                found[node] = frozenset().union(*(found[a] for a in node.args))
                if node.op == "sum":
                    found[node] -= {"state"}
        return found

    def shape(self, dims: Iterable[str]) -> str:
        """(LANES, 1): the shape of a tile that extends along ``dims``"""
        dims = set(dims)
        text = ", ".join(self.size_of[d] if d in dims else "1" for d in self.dims)
        return f"({text},)" if len(self.dims) == 1 else f"({text})"

    def along(self, dim: str) -> str:
        """[:, None]: what makes a row of numbers a tile along ``dim``"""
        return "" if len(self.dims) == 1 else "[" + ", ".join(":" if d == dim else "None" for d in self.dims) + "]"

    def axis(self, dim: str) -> int:
        return self.dims.index(dim)

    def dims_of_axes(self, axes: Iterable[str]) -> set[str]:
        axes = set(axes)
        return {d for d in self.dims if self.axis_of[d] and self.axis_of[d] in axes}

    def masks(self, dims: Iterable[str]) -> list[str]:
        dims = set(dims) - ({"lane", "time"} if self.whole else set())
        return [*(["in_lanes"] if "lane" in dims else []), *(["in_state"] if "state" in dims and self.BN != self.N else []),
                *(["in_time"] if "time" in dims else [])]

    def summed(self, x: str, dim: str) -> str:
        return f"{self.dialect.helper('total')}({x}, {self.axis(dim)})"

    def declare(self, node: Node, name: str, expression: str) -> str:
        note = f"  # [{' '.join(node.axes)}]" if node.name and node.axes else ""
        return f"{name} = {expression}{note}"

    def index_of(self, axis: str, b: Buffer, time: str, state: str) -> str:
        return f"i_{axis}" if axis == self.plan.lane and axis else super().index_of(axis, b, time, state)

    # -- the kernel -----------------------------------------------------------------------------------------------------------

    def print(self) -> str:
        body = Source().indent()
        self._numbering(body)
        self._blocks(body)
        plan = self.plan
        scratch = bool(plan.recomputed)
        pointers, strides, numbers = argument_names(self.buffers, plan.graph.order, scratch)
        out = Source()
        out(f"# {self.title}", f"# {self.schedule}")
        for b in self.buffers:
            out(f"# {b.role:5} {b.name}: {b.dtype}[{' '.join((*b.leading, *b.axes))}]")
        out("", "import triton", "import triton.language as tl", "")
        for name in self.dialect.used:
            out("", *self.helper_text(name).rstrip("\n").split("\n"), "")
        fixed = ", ".join(f'"{n}"' for n in numbers if n not in self.specialised)
        out("", *wrapped("@triton.jit(do_not_specialize=[", fixed, "])"))
        out(*wrapped(f"def {self.entry}(", ", ".join((*pointers, *strides, *numbers)), "):"))
        for name, (value, meaning) in self.constants.items():
            out(f"    {name}: tl.constexpr = {value}  # {meaning}")
        return out.text() + body.text()

    def helper_text(self, name: str) -> str:
        return HELPERS[name]

    @property
    def entry(self) -> str:
        return entry_point(self.plan)

    def _numbering(self, out: Source) -> None:
        """Which slot of lanes, group, grid position and segment this program has."""
        plan = self.plan
        places = [("slot", "slots")]
        if plan.lane_group:
            places.append(("i_group", f"size_{plan.lane_group}"))
        places += [(f"i_{axis}", f"size_{axis}") for axis in reversed(plan.grid)]
        out("rest = tl.program_id(0)")
        for name, count in places:
            out(f"{name} = tl.cast(rest % {count}, tl.int64)", f"rest = rest // {count}")
        out("seg = tl.cast(rest, tl.int64)")
        for dim in self.dims:
            if dim != "time":
                name = "lane" if dim == "lane" else "n"
                out(f"{name} = tl.cast(tl.arange(0, {self.size_of[dim]}), tl.int64){self.along(dim)}")
        if plan.state and self.BN != self.N:
            out("in_state = n < N")
        if self._needs_origin():
            out(f"origin = tl.full({self.shape(())}, 0, tl.int32)")
        if plan.time:
            out(f"t0 = {self.start}", f"t1 = tl.minimum(t0 + segment, size_{plan.time})")
        if plan.recomputed:
            self.constants["SIZE"] = (scratch_width(plan, self.schedule, self.N), "floats of scratch that one set of carries takes")
            self._scratch(out)

    def _scratch(self, out: Source) -> None:
        """Names the scratch memory of this program."""
        raise NotImplementedError

    def slots(self, base: str, index: str) -> list[tuple[str, str]]:
        """(carry, pointer to its place in set ``index`` of the scratch at ``base``) of every recomputed scan."""
        found, at = [], 0
        for scan in self.plan.recomputed:
            dims = self.carry_dims(scan)
            place = "lane * BN + n" if dims == {"lane", "state"} else {"lane": "lane", "state": "n"}.get("".join(dims), "origin")
            for name in self.carry_words(scan):
                found.append((name, f"{base} + {index} * SIZE{f' + {at}' if at else ''} + {place}"))
                at += (self.constants["LANES"][0] if "lane" in dims else 1) * (self.BN if "state" in dims else 1)
        return found

    def _needs_origin(self) -> bool:
        """Whether a place in memory is met without an index: a tile of one value needs a tile of one pointer."""
        return any(not self.dims_of_axes(b.axes) for b in self.buffers if b.role != "input") \
            or any(not self.carry_dims(s) for s in self.plan.recomputed)

    def _blocks(self, out: Source) -> None:
        """The walk over lane tiles of this program."""
        plan = self.plan
        if self.walk > 1:
            self.constants["WALK"] = (self.walk, "lane tiles a program walks")
            out.open("for block in range(slot * WALK, tl.minimum(slot * WALK + WALK, blocks)):")
        else:
            out("block = slot")
        if plan.lane:
            group = "i_group * per_group + " if plan.lane_group else ""
            out("in_lanes = lane < per_group - block * LANES")
            out(f"i_{plan.lane} = {group}block * LANES + lane")
        self._setup(out)
        self._walk_time(out)
        self._finish(out)
        if self.walk > 1:
            if plan.recomputed or any(s.lane for s in plan.stores):
                out("tl.debug_barrier()  # the next lane tile reads and writes the same memory")
            out.indent(-1)

    def _walk_time(self, out: Source) -> None:
        raise NotImplementedError

    # -- before the walk ------------------------------------------------------------------------------------------------------

    def _setup(self, out: Source) -> None:
        """Values without time, pointers, carries and accumulators."""
        plan = self.plan
        everything = list(dict.fromkeys((*plan.recompute_body, *plan.main_body)))
        still = [n for n in everything if n.op == "const" or not plan.timed(n)]
        body = Body(self.dialect, self.names, self.known, self.declare, keep=frozenset(still))
        out(*body.run(still, lambda n: self.read(n, self.known) if n.op in ("input", "index", "size") else None))
        if plan.time:
            read = list(dict.fromkeys((*self.loads(plan.recompute_body), *self.loads(plan.main_body))))
            wanted = [self.of_input[n.args[0] if n.op == "shift" else n] for n in read]
            wanted += [self.of_store[s] for s in plan.stores if s.kind == "value"]
            for b in dict.fromkeys(wanted):
                name = self.tops[b.name] = self.names.fresh(f"{b.name}_at")
                out(f"{name} = {b.name}_ptr + {self.offset(b, time='', state='n')}")
        for scan in plan.scans:
            self._carry(out, scan)
        for store in plan.stores:
            if store.kind == "sum":
                for name in self.total_names(store):
                    out(f"{name} = tl.full({self.shape(self.total_dims(store))}, 0.0, tl.float32)")

    def carry_dims(self, scan: Node) -> frozenset[str]:
        return self.extent[scan] - {"time"}

    def _carry(self, out: Source, scan: Node) -> None:
        names = self.carry_words(scan)
        zero = f"tl.full({self.shape(self.carry_dims(scan))}, 0.0, tl.float32)"
        values = [zero] * len(names)
        if self.mode.entries:
            b = next(b for b in self.buffers if b.name == entry_name(self.plan, scan))
            values = [self.load(b, self.offset(b, time="", state="n"), k, self.masks(self.carry_dims(scan))) for k in range(len(names))]
            if not self.carry_dims(scan):
                values = [f"{zero} + {v}" for v in values]
        elif len(scan.args) == 3:
            start = self.known[scan.args[2]]
            same = self.extent[scan.args[2]] == self.carry_dims(scan) and scan.args[2].op != "const" and self.carry_dims(scan)
            values = [x if same else f"{zero} + {x}" for x in start] + values[len(start):]
        for name, value in zip(names, values, strict=True):
            out(f"{name} = {value}")

    def load(self, b: Buffer, at: str, part: int, masks: list[str], fill: str = "", *, pointer: str = "") -> str:
        """An expression for what lies at an offset of a buffer (or at a pointer), widened to float32 where it is a float."""
        place = pointer or f"{b.name}_ptr + {at}"
        if part:
            place += f" + {part}"
        mask = f", mask={' & '.join(masks)}, other={fill or ('0' if b.kind in ('int', 'bool') else '0.0')}" if masks else ""
        widen = ".to(tl.float32)" if b.dtype in ("bfloat16", "float16") else ""
        return f"tl.load({place}{mask}){widen}"

    def read(self, node: Node, known: dict[Node, Parts], later: int = 0) -> list[str]:
        """A leaf: an input (looked at ``by`` steps back for a shift), a position or a size; ``later`` steps after this one."""
        if node.op == "size":
            known[node] = (f"tl.cast(size_{node.attrs['axis']}, tl.int32)",)
            return []
        if node.op == "index":
            place = self._position(node.attrs["axis"])
            place += f" {'-' if later < 0 else '+'} {abs(later)}" if later and place == "t" else ""
            known[node] = (f"tl.cast({place}, tl.int32)",)
            return []
        b = self.of_input[node.args[0] if node.op == "shift" else node]
        by = (node.attrs["by"] if node.op == "shift" else 0) - later
        masks, fill, pointer = self.masks(self.extent[node]), "", ""
        if self.plan.time in b.axes and self.plan.time:
            time = f"(t {'-' if by > 0 else '+'} {abs(by)})" if by else "t"
            pointer = f"{self.tops[b.name]} + {time} * {b.name}_{self.plan.time}"
            if by and not self.whole:
                masks = [*masks, f"(t >= {by})" if by > 0 else f"(t < size_{self.plan.time} - {-by})"]
                value = node.attrs.get("fill", 0)
                fill = self.dialect.literal(float(value) if node.kind == "real" else value)
        parts = self.names.parts(node)
        lines = []
        for k, name in enumerate(parts):
            text = self.load(b, self.offset(b, state="n"), k, masks, fill if k == 0 or not fill else "0.0", pointer=pointer)
            lines.append(self.declare(node, name, text))
        known[node] = parts
        return lines

    def _position(self, axis: str) -> str:
        if axis == self.plan.time:
            return "t"
        if axis == self.plan.state:
            return "n"
        if axis == self.plan.lane_group:
            return "i_group"
        if self.plan.graph.groups.get(axis) in self.plan.grid and axis not in self.plan.grid:
            parent = self.plan.graph.groups[axis]
            return f"i_{parent} // (size_{parent} // size_{axis})"
        return f"i_{axis}"

    # -- each step ------------------------------------------------------------------------------------------------------------

    def contraction(self, node: Node, known: dict[Node, Parts]) -> list[str]:
        """A sum over the state axis, the padding left out."""
        lines, parts = [], self.names.parts(node)
        for name, x in zip(parts, known[node.args[0]], strict=True):
            if "state" not in self.extent[node.args[0]]:
                text = f"{atom(x)} * {float(self.N)}"
            else:
                text = self.summed(x if self.BN == self.N else f"tl.where(in_state, {x}, 0.0)", "state")
            lines.append(self.declare(node, name, text))
        known[node] = parts
        return lines

    def total_names(self, store: Store) -> Parts:
        return tuple(n.replace("[n]", "") for n in self.sum_names(store))

    def total_dims(self, store: Store) -> frozenset[str]:
        return self.extent[store.value]

    def save(self, store: Store, values: Parts, *, time: bool, condition: str = "") -> list[str]:
        """Writes a result: sums over lanes (and adds to what earlier lane tiles of this program left), keeps to its owner, masks."""
        b = self.of_store[store]
        dims = self.dims_of_axes(store.axes)
        masks = self.masks(dims)
        owner = self.owner(store.value, store.axes)
        masks += [f"({m})" for m in (owner, condition) if m]
        place = f"{self.tops[b.name]} + t * {b.name}_{self.plan.time}" if time else f"{b.name}_ptr + {self.offset(b, state='n')}"
        if not dims:
            place += " + origin"
        lines = []
        for k, value in enumerate(values):
            at = place + (f" + {k}" if k else "")
            if store.lane:
                value = self.summed(f"tl.where(in_lanes, {value}, 0.0)", "lane")
                if self.walk > 1:
                    earlier = " & ".join([*masks, "(block > slot * WALK)"])
                    value = f"{value} + tl.load({at}, mask={earlier}, other=0.0)"
            lines.append(f"tl.store({at}, {value}{', mask=' + ' & '.join(masks) if masks else ''})")
        return lines

    def run_body(self, nodes: Iterable[Node], known: dict[Node, Parts], special: Callable[[Node], list[str] | None]) -> list[str]:
        """The lines of one step or tile."""
        def each(node: Node) -> list[str] | None:
            if node.op in ("input", "shift", "index", "size"):
                return self.read(node, known)
            if node.op == "sum":
                return self.contraction(node, known)
            return special(node)

        return Body(self.dialect, self.names, known, self.declare).run([n for n in nodes if n not in known], each)

    # -- after the walk -------------------------------------------------------------------------------------------------------

    def save_final(self, store: Store) -> list[str]:
        last = "seg == 0" if store.value.attrs["reverse"] else "seg == segments - 1"
        return self.save(store, self.carry_words(store.value), time=False, condition="" if self.mode.summary else last)

    def _finish(self, out: Source) -> None:
        for store in self.plan.stores:
            if store.kind == "final" and store.value in self.plan.main:
                out(*self.save_final(store))
            elif store.kind == "sum":
                values = self.total_names(store)
                if "time" in self.total_dims(store):
                    values = tuple(self.summed(v, "time") for v in values)
                out(*self.save(store, values, time=False))


def entry_point(plan: Plan) -> str:
    """The kernel function's name: the graph's."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in plan.graph.name) + "_kernel"


def wrapped(head: str, text: str, tail: str, width: int = 130) -> list[str]:
    """``head text tail`` broken between the items of a comma separated text."""
    lines, line = [], head
    for i, item in enumerate(text.split(", ")):
        piece = item if i == 0 else f", {item}"
        if len(line) + len(piece) > width:
            lines.append(line + ",")
            line, piece = "        ", item
        line += piece
    return [*lines, line + tail]


def make_source(printer: TritonPrinter) -> KernelSource:
    return printer.source("python", printer.print())
