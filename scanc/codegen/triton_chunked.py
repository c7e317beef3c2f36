"""The Triton backend, printing the form chunked: what its kernels share.

Kernels of one program (forms/chunked.py has the algebra):

    early     what varies over time and heads alone: cumulative exponents, weights             triton_chunked_early.py
              and products of columns that heads share, in front of a forward's walk           triton_chunked_scores.py
    walk      a forward: time walked a chunk at once with the states in registers               triton_chunked_walk.py
    summary   the same of segments side by side, each from zero, leaving only where it ends
    pass      carries of all segments' starts from the summaries, where they are many
    states    the same walk, leaving the states at the chunks' borders, or at every second one
    chunks    a backward: all chunks side by side, each from the states at its borders          triton_chunked_reads.py
    totals    and what is summed over heads
    pairs     pairs of steps of two chunks, where a state is kept for both                  triton_chunked_pairs.py
    late      what is left over time and heads alone                                            triton_chunked_early.py

triton_chunked_algebra.py prints a chunk's products, triton_chunked_run.py launches the kernels, triton_chunked_source.py has their parts.

A value over time alone is a tile [Q, 1], over rows [Q, BP], over columns [Q, BN], without time [1, …] or a scalar; a state is [BP, BN].
The kernels that walk time have these tiles turned, time last: a state is then the first operand of its products, in registers as it is.
Operands of products are in the inputs' own dtype, everything else in float32.

Where the device copies whole tiles (Hopper's tensor memory accelerator) and the tensors' strides allow it, tiles go through tensor
descriptors: a thread then computes no addresses, which would take a quarter of its registers. They come with the launch where time is whole
chunks and each tensor is a matrix of steps; else every program makes its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scanc.codegen.emit import Body, Names, Source
from scanc.codegen.layout import storage_dtype
from scanc.codegen.triton_chunked_parts import span
from scanc.codegen.triton_chunked_source import DESCRIPTORS, TYPES, WORDS, Argument, ChunkSource, Scope, Shape, Tiles
from scanc.codegen.triton_common import ceil_power, wrapped
from scanc.codegen.triton_language import HELPERS, TritonDialect
from scanc.forms.chunked import ChunkPlan, ChunkStore
from scanc.ir import Graph, Node
from scanc.schedule import ChunkedSchedule


class ChunkPrinter:
    """One kernel of a chunk plan. ``turned``: its tiles have time last; ``flipped``: its [Q, Q] matrices have earlier steps for rows."""

    turned = False
    flipped = False
    walks_heads = False   # whether a program takes one head after another
    when = ""             # a suffix of the chunk that is printed of: ts, first and in_time have it
    column_tiles = 1      # tiles of columns of a state
    part = 0              # which of them is printed of

    def __init__(self, plan: ChunkPlan, schedule: ChunkedSchedule, shape: Shape, kind: str, title: str) -> None:
        self.plan, self.schedule, self.shape, self.kind, self.title = plan, schedule, shape, kind, title
        self.graph: Graph = plan.graph
        self.dialect = TritonDialect()
        self.arguments: list[Argument] = []
        self.names = Names()
        for word in (*WORDS, *HELPERS, *(f"{w}_{a}" for a in self.graph.order for w in ("i", "size"))):
            self.names.fresh(word)
        for node in self.graph.inputs:
            self.names.fresh(f"{node.name}_ptr")
        self.whole_rows = max(16, ceil_power(shape.rows))
        self.BP = self.whole_rows
        self.BN = max(16, ceil_power(shape.columns))
        self.padded_columns = shape.columns != self.BN
        self.operand_type = TYPES[shape.operands]
        self.how = f', input_precision="{shape.precision}"' if shape.operands == "float32" else ""
        self.extents: dict[Node, frozenset[str]] = {}
        self.masked = shape.rows != self.BP
        self.descriptors: dict[str, list[str]] = {}   # name -> the lines that make it
        self.given: dict[str, Tiles] = {}             # those that a launch gives
        self.functions: list[str] = []                # jit functions of this kernel's own

    # -- the text around the body ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return "".join(c if c.isalnum() or c == "_" else "_" for c in self.graph.name) + f"_{self.kind}"

    def constants(self) -> dict[str, tuple[int, str]]:
        return {"Q": (self.schedule.chunk, "steps of a chunk"), "P": (self.shape.rows, f"rows, axis {self.plan.rows}"),
                "BP": (self.BP, "rows a program carries at a time"), "PT": (self.whole_rows, "rows padded"),
                "N": (self.shape.columns, f"columns, axis {self.plan.columns}"), "BN": (self.BN, "columns padded")}

    def numbers(self) -> tuple[str, ...]:
        return (*(f"size_{a}" for a in self.graph.order), "padded", "segment", "segments", "walked", "before")

    def source(self, body: Source, warps: int, registers: int = 0) -> ChunkSource:
        numbers = self.numbers()
        out = Source()
        out(f"# {self.title}", f"# {self.schedule}")
        for a in self.arguments:
            out(f"# {a.role:5} {a.name}: {a.dtype}[{' '.join(a.axes)}]")
        out("", "import triton", "import triton.language as tl", "")
        for text in (*(HELPERS[helper] for helper in self.dialect.used), *self.functions):
            out("", *text.rstrip("\n").split("\n"), "")
        out("", *wrapped("@triton.jit(do_not_specialize=[", ", ".join(f'"{n}"' for n in numbers), "])"))
        out(*wrapped(f"def {self.name}_kernel(", ", ".join(self.parameters(numbers)), "):"))
        text = out.text() + self.text_of(body)
        return ChunkSource(self.name, text, tuple(self.arguments), numbers, warps, registers, bulk=bool(self.descriptors),
                           tiles=tuple(self.given.values()))

    def parameters(self, numbers: Iterable[str]) -> list[str]:
        """Pointers, descriptors, strides and numbers, in the order in which a kernel takes them."""
        return [*(f"{a.name}_ptr" for a in self.arguments), *self.given, *(s for a in self.arguments for s in a.strides), *numbers]

    def text_of(self, body: Source) -> str:
        """A kernel's body below its parameters: what is constant, and all else."""
        constants = "".join(f"    {name}: tl.constexpr = {value}  # {meaning}\n" for name, (value, meaning) in self.constants().items())
        made = "".join(f"    {line}\n" for lines in self.descriptors.values() for line in lines)
        return constants + body.text().replace(f"    {DESCRIPTORS}\n", made)

    def argument(self, name: str, axes: Iterable[str], dtype: str, role: str) -> Argument:
        found = next((a for a in self.arguments if a.name == name), None)
        if found is None:
            found = Argument(name, tuple(axes), dtype, role)
            self.arguments.append(found)
        return found

    # -- places ---------------------------------------------------------------------------------------------------------------

    def grid_index(self, axis: str, scope: Scope) -> str:
        """Which position along a grid axis, or a group of one, a program is at."""
        head = scope.head or f"i_{self.plan.head}"
        if axis in self.plan.grid:
            return head if axis == self.plan.head else f"i_{axis}"
        parent = self.graph.groups[axis]
        index = head if parent == self.plan.head else f"i_{parent}"
        return f"({index} // (size_{parent} // size_{axis}))"

    def base(self, a: Argument, scope: Scope, **leading: str) -> str:
        """The pointer of a program's part of a tensor: grid axes and those of partial results."""
        terms = [f"{a.name}_ptr"]
        for axis, stride in zip(a.axes, a.strides, strict=True):
            if axis.startswith("@"):
                terms.append(f"{leading[axis[1:]]} * {stride}")
            elif axis not in ("", self.plan.time, self.plan.rows, self.plan.columns):
                terms.append(f"{self.grid_index(axis, scope)} * {stride}")
        return " + ".join(terms)

    def place(self, a: Argument, top: str, by: int = 0) -> str:
        """A tile of pointers from ``top``, ``by`` steps back in time."""
        time, rows, columns = self.plan.time, self.plan.rows, self.plan.columns
        text = top
        if time in a.axes:
            first = f"(first{self.when} {'-' if by > 0 else '+'} {abs(by)})" if by else f"first{self.when}"
            text += f" + {first} * {a.name}_{time} {'-' if self.plan.mirrored else '+'} tau * {a.name}_{time}"
        if rows in a.axes:
            text += f" + p * {a.name}_{rows}"
        if columns in a.axes:
            text += f" + {self.column} * {a.name}_{columns}"
        return text

    @property
    def column(self) -> str:
        """The columns beside steps."""
        return f"(n + {self.part} * BN)" if self.part else "n"

    @property
    def state_column(self) -> str:
        """The columns of a state."""
        return f"(n_state + {self.part} * BN)" if self.part else "n_state"

    def masks(self, dims: Iterable[str]) -> list[str]:
        dims = set(dims)
        return [*([f"in_time{self.when}"] if "t" in dims else []), *(["in_p"] if "p" in dims and self.masked else []),
                *(["in_n"] if "n" in dims and self.padded_columns else [])]

    def axis_dims(self, axes: Iterable[str]) -> frozenset[str]:
        """The tile dimensions that axes are."""
        of = {self.plan.time: "t", self.plan.rows: "p", self.plan.columns: "n"}
        return frozenset(of[a] for a in axes if a in of)

    def dims(self, node: Node) -> frozenset[str]:
        """Which of t, p, n a printed tile extends along: broadcasts are left to Triton."""
        if node not in self.extents:
            of_axes = self.axis_dims(node.axes)
            if node in self.plan.leaves or node.op in ("input", "shift", "index"):
                self.extents[node] = of_axes
            else:
                found: frozenset[str] = frozenset().union(*(self.dims(a) for a in node.args))
                self.extents[node] = found & of_axes if node.op == "sum" else found
        return self.extents[node]

    def extent(self, dims: Iterable[str]) -> str:
        """The shape of a tile over these dimensions."""
        dims = set(dims)
        steps, others = "Q" if "t" in dims else "1", "BP" if "p" in dims else "BN" if "n" in dims else "1"
        return f"({others}, {steps})" if self.turned else f"({steps}, {others})"

    def zeros(self, dims: Iterable[str]) -> str:
        return f"tl.full({self.extent(dims)}, 0.0, tl.float32)"

    def along(self, across: bool) -> str:
        """The subscript that makes a tile of the values of a chunk's steps, along a matrix's rows or ``across`` its columns."""
        return "[None, :]" if across else "[:, None]"

    def steps(self, across: bool) -> str:
        """The tile of a chunk's steps along a matrix's rows, or ``across`` its columns."""
        return "tau" if across == self.turned else "sigma"

    # -- tensor descriptors ---------------------------------------------------------------------------------------------------

    def described(self, a: Argument, scope: Scope) -> tuple[str, str] | None:
        """(descriptor, place in it) of a program's tiles of a tensor; None where it has to be pointers."""
        time, rows, columns = self.plan.time, self.plan.rows, self.plan.columns
        if not self.shape.bulk or self.plan.mirrored or time not in a.axes or (rows in a.axes) == (columns in a.axes):
            return None
        if any(axis.startswith("@") for axis in a.axes) or a.axes[-1] not in (rows, columns):
            return None
        wide, tile = ("BP", "P") if rows in a.axes else ("BN", "N")
        if self.shape.given:
            return self._given(a, scope, wide)
        top, extent, start = self.base(a, scope), tile, "0"
        if wide == "BP" and self.whole_rows > self.BP:
            start = "i_rows * BP"
        if self.walks_heads and self.plan.head in a.axes:
            top = self.base(replace(a, axes=tuple("" if x == self.plan.head else x for x in a.axes)), scope)
            extent, start = f"size_{self.plan.head} * {tile}", f"i_{self.plan.head} * {tile}"
        if wide == "BN" and self.part:
            start = f"{self.part} * BN"
        name = f"{a.name}{scope.suffix}_tiles"
        self.descriptors[name] = [f"{name} = tl.make_tensor_descriptor({top}, [size_{time}, {extent}], [{a.name}_{time}, 1], [Q, {wide}])"]
        return name, f"[tl.cast(ts{self.when}, tl.int32), {start if start == '0' else f'tl.cast({start}, tl.int32)'}]"

    def _given(self, a: Argument, scope: Scope, wide: str) -> tuple[str, str]:
        """The same of a descriptor that the launch gives: axes before time are whole numbers of steps, those after it lie within a step."""
        name, at = f"{a.name}_tiles", a.axes.index(self.plan.time)
        self.given[name] = Tiles(name, a.name, at, (self.schedule.chunk, self.BP if wide == "BP" else self.BN))

        def index(axis: str) -> str:
            return f"i_{axis}" if self.walks_heads and axis == self.plan.head else self.grid_index(axis, scope)

        down = [f"{index(x)} * ({a.name}_{x} // {a.name}_{self.plan.time})" for x in a.axes[:at]]
        across = [f"{index(x)} * {a.name}_{x}" for x in a.axes[at + 1:-1]]
        across += ["i_rows * BP"] if wide == "BP" and self.whole_rows > self.BP else []
        across += [f"{self.part} * BN"] if wide == "BN" and self.part else []
        step, place = " + ".join([*down, f"ts{self.when}"]), " + ".join(across)
        return name, f"[tl.cast({step}, tl.int32), {f'tl.cast({place}, tl.int32)' if across else '0'}]"

    @property
    def span(self) -> int:
        """Chunks of one state at a border."""
        return span(self.plan, self.schedule)

    @property
    def kept(self) -> str:
        """Steps from one border whose states are kept to the next."""
        return f"(Q * {self.span})" if self.span > 1 else "Q"

    def shared(self, node: Node) -> bool:
        """Whether a value is the same for the heads of one program (which are all of one group)."""
        return self.plan.head not in node.axes

    def border_tiles(self, i: int, index: str, start: str, scope: Scope) -> tuple[str, str]:
        """(descriptor, place in it) of a program's tile of a scan's states at chunks' borders."""
        name = f"border{i}"
        self.argument(name, (), self.shape.operands, "inner")
        states, wide = f"(padded // {self.kept}) * {self.rows_of_grid()}", "BN" if self.column_tiles == 1 else "NT"
        if self.shape.given:
            self.given[f"{name}_tiles"] = Tiles(f"{name}_tiles", name, None, (self.BP, self.BN), self.BN * self.column_tiles)
        else:
            self.descriptors[f"{name}_tiles"] = [
                f"{name}_tiles = tl.make_tensor_descriptor({name}_ptr, [{states} * PT, {wide}], [{wide}, 1], [BP, BN])"]
        row = f"({index} * {self.rows_of_grid()} + {self.grid_row(scope)}) * PT{f' + {start}' if start else ''}"
        return f"{name}_tiles", f"[tl.cast({row}, tl.int32), {f'{self.part} * BN' if self.part else 0}]"

    # -- values ---------------------------------------------------------------------------------------------------------------

    def declare(self, node: Node, name: str, expression: str) -> str:
        note = f"  # [{' '.join(node.axes)}]" if node.name and node.axes else ""
        return f"{name} = {expression}{note}"

    def values(self, out: Source, nodes: Iterable[Node], scope: Scope) -> None:
        """Prints values in order."""
        def special(node: Node) -> list[str] | None:
            if node.op in ("input", "shift", "index", "size"):
                return self.load(node, scope)
            return self.sum(node, scope) if node.op == "sum" else None

        todo = [n for n in nodes if n not in scope.known]
        keep = frozenset(todo) - {n for n in todo if n.name is None}
        out(*Body(self.dialect, scope.names, scope.known, self.declare, keep).run(todo, special))

    def load(self, node: Node, scope: Scope) -> list[str]:
        if node.op == "size":
            scope.known[node] = (f"tl.cast(size_{node.attrs['axis']}, tl.int32)",)
            return []
        if node.op == "index":
            scope.known[node] = (f"tl.cast({self._position(node.attrs['axis'], scope)}, tl.int32)",)
            return []
        source = node.args[0] if node.op == "shift" else node
        a = self.argument(str(source.name), source.axes, source.type.dtype, "input")
        by = node.attrs["by"] if node.op == "shift" else 0
        masks, fill = self.masks(self.dims(node)), "0.0" if node.kind == "real" else "0"
        if by:
            place = f"(first{self.when} {'-' if self.plan.mirrored else '+'} tau)"
            masks.append(f"({place} >= {by})" if by > 0 else f"({place} < size_{self.plan.time} - {-by})")
            value = node.attrs.get("fill", 0)
            fill = self.dialect.literal(float(value) if node.kind == "real" else value)
        mask = f", mask={' & '.join(masks)}, other={fill}" if masks else ""
        described = self.described(a, scope) if not by else None
        if described is not None:
            text = f"{described[0]}.load({described[1]})"
            text = f"tl.trans({text})" if self.turned else text
        else:
            text = f"tl.load({self.place(a, self.base(a, scope), by)}{mask})"
        name = scope.names.of(node)
        scope.known[node] = (name,)
        if a.dtype not in ("bfloat16", "float16"):
            if a.dtype == self.shape.operands:
                scope.made["stored", node] = name
            return [self.declare(node, name, text)]
        stored = scope.names.fresh(f"{name}_stored")
        if a.dtype == self.shape.operands:
            scope.made["stored", node] = stored
        return [self.declare(node, stored, text), f"{name} = {stored}.to(tl.float32)"]

    def _position(self, axis: str, scope: Scope) -> str:
        if axis == self.plan.time:
            return f"(first{self.when} {'-' if self.plan.mirrored else '+'} tau)"
        return {self.plan.rows: "p", self.plan.columns: "n"}.get(axis) or self.grid_index(axis, scope)

    def sum(self, node: Node, scope: Scope) -> list[str]:
        """A sum over rows or columns at each step."""
        x, gone = node.args[0], set(node.args[0].axes) - set(node.axes)
        text = scope.known[x][0]
        for dim, axis, size in (("p", self.plan.rows, self.shape.rows), ("n", self.plan.columns, self.shape.columns)):
            if axis in gone and dim not in self.dims(x):
                text = f"{text} * {float(size)}"
            elif axis in gone:
                text = self.total(self.padded_to_zero(text, dim), 0 if self.turned else 1)
        name = scope.names.of(node)
        scope.known[node] = (name,)
        return [self.declare(node, name, text)]

    def padded_to_zero(self, text: str, dim: str) -> str:
        """A tile, 0 where it is padding of rows or columns."""
        masks = self.masks({dim})
        return f"tl.where({masks[0]}, {text}, 0.0)" if masks else text

    # -- values made ahead (see triton_chunked_early.py): contiguous over the padded length, a row for each grid position -----------

    def rows_of_grid(self) -> str:
        return "(" + (" * ".join(f"size_{a}" for a in self.plan.grid) or "1") + ")"

    def grid_row(self, scope: Scope) -> str:
        text = ""
        for axis in self.plan.grid:
            index = self.grid_index(axis, scope)
            text = f"({text} * size_{axis} + {index})" if text else index
        return text or "0"

    def ahead(self, name: str, scope: Scope, index: str, dtype: str = "float32") -> str:
        """Pointers to values made ahead, at ``index`` within the chunk."""
        self.argument(name, (), dtype, "inner")
        return f"{name}_ptr + {self.grid_row(scope)} * padded + ts{self.when} + {index}"

    def early_name(self, node: Node) -> str:
        return f"early{self.plan.early.index(node)}"

    def decays_ahead(self, out: Source, scope: Scope) -> None:
        """Loads, of every step, its cumulative exponent g, its weight, and decays from the chunk's start and to its end, [Q] each.

        They lie four together: Triton 3.6 takes a load of fewer values than a block has threads for one that every thread may repeat.
        """
        if "g_row" in scope.made:
            return
        four, one, two = (scope.names.fresh(f"{word}{scope.suffix}") for word in ("four", "one", "two"))
        for word in ("g_row", "w_row", "enter_row", "leave_row"):
            scope.made[word] = scope.names.fresh(f"{word}{scope.suffix}")
        m = scope.made
        out(f"{four} = tl.load({self.sums_place(scope)} + {self.steps(False)} * 4 + tl.arange(0, 4)[None, :])",
            f"{one}, {two} = tl.split(tl.reshape({four}, (Q, 2, 2)))",
            f"{m['g_row']}, {m['enter_row']} = tl.split({one})", f"{m['w_row']}, {m['leave_row']} = tl.split({two})")

    def sums_place(self, scope: Scope, step: str = "") -> str:
        self.argument("sums", (), "float32", "inner")
        return f"sums_ptr + ({self.grid_row(scope)} * padded + {step or f'ts{self.when}'}) * 4"

    def left_place(self, scope: Scope) -> str:
        """Where, behind those fours, the products of weights and decays to the chunk's end lie: a value for each step."""
        self.argument("sums", (), "float32", "inner")
        return f"sums_ptr + ({self.rows_of_grid()} * 4 + {self.grid_row(scope)}) * padded + ts"

    def early(self, out: Source, nodes: Iterable[Node], scope: Scope) -> None:
        """Loads values made ahead."""
        for node in nodes:
            name = scope.names.of(node)
            if node is self.plan.paired:
                self.decays_ahead(out, scope)
                text = f"{scope.made['w_row']}{self.along(self.turned)}"
            else:
                text = f"tl.load({self.ahead(self.early_name(node), scope, 'tau', 'float32' if node.kind == 'real' else 'int32')})"
            out(self.declare(node, name, text))
            scope.known[node] = (f"({name} != 0)" if node.kind == "bool" else name,)

    def total(self, x: str, axis: int) -> str:
        return f"{self.dialect.helper('total')}({x}, {axis})"

    def running(self, x: str, back: bool = False) -> str:
        return f"{self.dialect.helper('running')}({x}, {back})"

    # -- results --------------------------------------------------------------------------------------------------------------

    def store_argument(self, store: ChunkStore, leading: Iterable[str]) -> Argument:
        leading = tuple(leading)
        dtype = "float32" if leading else storage_dtype(self.graph, store.output)
        return self.argument(store.name, (*leading, *store.output.axes), dtype, "store")

    def tiles(self) -> list[str]:
        """The index tiles every kernel has: steps (tau, and sigma the other way), columns beside steps, and of a state."""
        later, earlier = self.steps(self.flipped), self.steps(not self.flipped)
        lines = [f"tau = tl.arange(0, Q){self.along(self.turned)}", f"sigma = tl.arange(0, Q){self.along(not self.turned)}",
                 f"causal = {later} >= {earlier}",
                 f"n = tl.arange(0, BN){self.along(not self.turned)}", "n_state = tl.arange(0, BN)[None, :]"]
        return lines + (["in_n = n < N"] if self.padded_columns else [])

    def rows_tile(self, start: str = "") -> str:
        """The tile of rows beside steps."""
        return f"p = {start}tl.arange(0, BP){self.along(not self.turned)}"

    def chunk_start(self) -> list[str]:
        """Where a chunk lies, once ``ts`` is known."""
        w = self.when
        first = f"first{w} = size_{self.plan.time} - 1 - ts{w}" if self.plan.mirrored else f"first{w} = ts{w}"
        return [first, f"in_time{w} = tau < tl.minimum(t1 - ts{w}, Q)"]

    def state_place(self, a: Argument, scope: Scope) -> tuple[str, str]:
        """Pointers [BP, BN] into a tensor of states, and their mask. For kernels whose tiles are turned."""
        text = f"{self.base(a, scope)} + p * {a.name}_{self.plan.rows} + {self.state_column} * {a.name}_{self.plan.columns}"
        masks = [*(["in_p"] if self.masked else []), *(["(n_state < N)"] if self.padded_columns else [])]
        return text, " & ".join(masks)
