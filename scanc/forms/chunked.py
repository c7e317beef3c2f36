"""The chunked form, derived from a graph (chunked_recognise.py): transitions over time and head alone, as matrix products.

What is recognised.  Every scan S over (grid, time, p, n) of the graph has one and the same transition a = exp2(e) over (grid,
time), set to zero where a condition ``reset`` holds, and an input that is an outer product w_t u_t ⊗ v_t of a weight, a *row* factor
over p and a *column* factor over n. The states are read through contractions only, of five kinds:

    columns   Σ_n r_tn S_tpn            y = C h, the gradient of x
    rows      Σ_p q_tp S_tpn            the gradients of B and C
    decay     a_t Σ_pn λ_tpn h_{t-1,pn}  the gradient of log a: of two scans of opposite directions
    weight    Σ_pn u_tp v_tn λ_tpn      the gradient of w_t, where u and v are the input of the scan of the other direction
    final     the carry after the last step

The algebra.  With e summed up from the chunk's start, g_t = Σ_{k≤t} e_k and G its value at the chunk's end, carry H at the start of a
chunk of a forward scan, and carry E at the end of a chunk of its adjoint:

    h_t = 2^{g_t} H + Σ_{j≤t} 2^{g_t - g_j} w_j u_j ⊗ v_j            H' = 2^G H + Σ_j 2^{G - g_j} w_j u_j ⊗ v_j
    λ_t = 2^{G - g_t} E + Σ_{s≥t} 2^{g_s - g_t} w_s u_s ⊗ v_s         E' = 2^G E + Σ_s 2^{g_s} w_s u_s ⊗ v_s

so with the decay matrix L_sj = 2^{g_s - g_j} for s ≥ j, else 0, later steps s against earlier ones j, every read is a masked product:

    columns of h   (L ∘ V_s V_jᵀ ∘ w) U          rows of h   (L ∘ U_s U_jᵀ ∘ w) V          those of λ with the transposed matrices
    decay_t = Σ_{s≥t} ⟨later input_s, 2^{g_s} H⟩ + Σ_{j<t} ⟨earlier input_j, 2^{G - g_j} E⟩ + Σ_{s≥t>j} W_sj + 2^G ⟨E, H⟩
    w_j weight_j = ⟨earlier input_j, 2^{G - g_j} E⟩ + Σ_{s≥j} W_sj

with W = L ∘ V_s V_jᵀ ∘ U_s U_jᵀ ∘ weights: cumulative sums of the chunk's own products, never of the whole length's.
The adjoint of such a scan is one of the other kind over the same transition (passes/adjoint.py): the backward graph is recognised by
the same rules as the forward one, and nothing here differentiates. A scan that runs backwards and its adjoint are the same in mirrored
time. Source: Dao & Gu, Transformers are SSMs (2024), §6; Yang et al., Gated Linear Attention (2023), §4.3, for the gradient of decays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from scanc.ir import Axes, Graph, Node, Output, topological


@dataclass(frozen=True, eq=False)
class Outer:
    """w_t u_t ⊗ v_t: the input of a scan. ``weight`` is None where it is 1."""

    weight: Node | None
    rows: Node
    columns: Node


@dataclass(frozen=True, eq=False)
class ChunkScan:
    """One scan. ``back`` says that its carry walks against the direction of the graph's walk: it is an adjoint's."""

    scan: Node
    back: bool
    input: Outer
    initial: Node | None


@dataclass(frozen=True, eq=False)
class Read:
    """One contraction of a state; ``node`` is the value of the graph that it gives, ``factor`` what it is contracted with.

    Reads of decays and weights have no factor; ``of`` is then the forward scan and ``against`` the backward one.
    """

    node: Node
    kind: str  # columns, rows, decay, weight
    of: ChunkScan
    factor: Node | None = None
    weight: Node | None = None
    against: ChunkScan | None = None
    before: bool = False  # of the state before the step: where every key decays at its own pace


# A later and an earlier step's factor.
Pair = tuple[Node, Node]


def pair_of(read: Read) -> tuple[Pair, Node | None, Node | None]:
    """The factors that a read multiplies of every two steps of a chunk, and the later and the earlier weight."""
    assert read.factor is not None
    own = read.of.input.columns if read.kind == "columns" else read.of.input.rows
    if read.of.back:
        return (own, read.factor), read.of.input.weight, read.weight
    return (read.factor, own), read.weight, read.of.input.weight


@dataclass(frozen=True, eq=False)
class ChunkStore:
    """One result: a value, a sum over axes ``gone`` (time, grid axes) of one, or a scan's last carry."""

    output: Output
    value: Node
    gone: Axes
    final: bool = False

    @property
    def name(self) -> str:
        return self.output.name


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """A graph in the chunked form. ``rows`` and ``columns`` are the axes p and n; ``head`` is the innermost grid axis."""

    graph: Graph
    rows: str
    columns: str
    grid: Axes
    mirrored: bool
    decay: Node
    reset: Node | None
    scans: tuple[ChunkScan, ...]
    reads: tuple[Read, ...]
    stores: tuple[ChunkStore, ...]

    @property
    def time(self) -> str:
        return self.graph.time

    @property
    def head(self) -> str:
        return self.grid[-1] if self.grid else ""

    @property
    def keyed(self) -> bool:
        """Whether the transition varies over columns too: every key decays at its own pace."""
        return self.columns in self.decay.axes

    @cached_property
    def earlier(self) -> tuple[Node, ...]:
        """The factors over columns of the earlier step of a pair, j: one where decays are a key's."""
        return self._factors("columns", later=False)

    @cached_property
    def later(self) -> tuple[Node, ...]:
        """Those of the later step, s."""
        return self._factors("columns", later=True)

    @cached_property
    def earlier_rows(self) -> tuple[Node, ...]:
        """The factors over rows of a pair's earlier step."""
        return self._factors("rows", later=False)

    @cached_property
    def later_rows(self) -> tuple[Node, ...]:
        """The factors over rows of its later step."""
        return self._factors("rows", later=True)

    def _factors(self, axis: str, *, later: bool) -> tuple[Node, ...]:
        """What scans of one direction take in along an axis, and what the others' states are read with; rows of reads before their step
        have matrices of their own."""
        inputs = [s.input.columns if axis == "columns" else s.input.rows for s in self.scans if s.back == later]
        others = [r for r in self.reads if r.kind == axis and r.of.back != later and not (axis == "rows" and r.before)]
        reads = [r.factor for r in others if r.factor is not None]
        return tuple(dict.fromkeys([*inputs, *reads]))

    @property
    def before(self) -> bool:
        """Whether the matrix of a chunk's pairs is of reads before their step."""
        return any(r.before for r in self.reads if r.kind == "columns")

    @cached_property
    def later_rows_before(self) -> tuple[Node, ...]:
        """Those of reads before their step."""
        return tuple(dict.fromkeys(r.factor for r in self.reads if r.kind == "rows" and r.before and r.factor))

    @cached_property
    def walks(self) -> bool:
        """Whether one walk over time gives everything: no scan goes back, nothing is summed over a program's own axes."""
        return not any(s.back for s in self.scans) and all(r.kind == "columns" for r in self.reads) and not any(s.gone for s in self.stores)

    @cached_property
    def shared(self) -> tuple[Pair, ...]:
        """Pairs of factors over columns that no head has for itself, each step's own, made of inputs alone: where heads have decays."""
        groups = [g for g, parent in self.graph.groups.items() if parent == self.head]

        def common(pair: Pair) -> bool:
            body = self.body(list(pair))
            plain = not any(n in self.leaves or n in self.early or self.head in n.axes for n in body)
            return plain and all(self.time in n.axes for n in pair) and sum(g in {a for n in pair for a in n.axes} for g in groups) <= 1

        pairs = dict.fromkeys(pair_of(r)[0] for r in self.reads if r.kind == "columns")
        return tuple(p for p in pairs if self.head and not self.keyed and common(p))

    @cached_property
    def leaves(self) -> frozenset[Node]:
        """Values that are not computed from their arguments but by chunk algebra."""
        return frozenset(r.node for r in self.reads)

    def body(self, roots: list[Node], stop: frozenset[Node] = frozenset()) -> list[Node]:
        """``roots`` and what they need, reads and ``stop`` as leaves, arguments before users."""
        done: dict[Node, None] = {}
        leaves = self.leaves | stop
        stack: list[tuple[Node, int]] = [(r, 0) for r in reversed(roots)]
        while stack:
            node, at = stack.pop()
            if node in done:
                continue
            args = () if node in leaves else node.args
            if at < len(args):
                stack += [(node, at + 1), (args[at], 0)]
            else:
                done[node] = None
        return list(done)

    @cached_property
    def after(self) -> frozenset[Node]:
        """Values that need a read."""
        found = set(self.leaves)
        for node in self.body([s.value for s in self.stores if not s.final]):
            if any(a in found for a in node.args):
                found.add(node)
        return frozenset(found)

    @cached_property
    def dense(self) -> frozenset[Node]:
        """Values over rows or columns, and all that is made of such."""
        found = set(self.after)
        factors = [f for s in self.scans for f in (s.input.rows, s.input.columns, s.input.weight)] + [r.factor for r in self.reads]
        for node in self.body([n for n in (*factors, *(s.value for s in self.stores if not s.final), self.reset) if n is not None]):
            if {self.rows, self.columns} & set(node.axes) or any(a in found for a in node.args):
                found.add(node)
        return frozenset(found)

    @cached_property
    def late(self) -> frozenset[Node]:
        """Values over time and grid alone that are made of what is read or of sums over rows, and needed by nothing but such values."""
        nodes = self.body([s.value for s in self.stores if not s.final])
        gradients = {r.node for r in self.reads if r.kind in ("decay", "weight")}
        found = {n for n in nodes if n in self.dense and not {self.rows, self.columns} & set(n.axes) and (n.op != "sum" or n in gradients)}
        while True:
            needed = {a for n in nodes if n not in found and n not in self.leaves for a in n.args} & found
            if not needed:
                return frozenset(found)
            found -= needed

    @cached_property
    def met(self) -> tuple[Node, ...]:
        """Values over time and grid alone that the chunks' programs leave for what comes late."""
        nodes = self.body([s.value for s in self.stores if not s.final])
        found = [a for n in nodes if n in self.late and n not in self.leaves for a in n.args]
        found += [s.value for s in self.stores if self.comes_late(s)]
        return tuple(dict.fromkeys(n for n in found if n in self.dense and n not in self.late))

    def comes_late(self, store: ChunkStore) -> bool:
        """Whether a result is over time and grid alone: such results are finished when all chunks are done."""
        return not self.keyed and not self.walks and not store.final and not {self.rows, self.columns} & set(store.value.axes)

    @cached_property
    def early(self) -> tuple[Node, ...]:
        """Values over time and grid alone that chunk algebra, or what follows it, needs: they are computed once, ahead of it."""
        if self.keyed:
            return ()
        weights = [w for s in self.scans for w in (s.input.weight,)] + [r.weight for r in self.reads]
        factors = [f for s in self.scans for f in (s.input.rows, s.input.columns)] + [r.factor for r in self.reads]
        values = [s.value for s in self.stores if not s.final]
        wanted = [n for n in (*weights, *values, *([self.reset] if any(r.kind == "decay" for r in self.reads) else [])) if n is not None]

        nodes = self.body([*wanted, *(f for f in factors if f is not None)])

        def light(node: Node) -> bool:
            return self.time in node.axes and node not in self.dense

        found = dict.fromkeys(n for n in wanted if light(n))
        for node in nodes:
            if not light(node) and node not in self.leaves:  # met by what is no such value
                found.update(dict.fromkeys(a for a in node.args if light(a)))
        return tuple(found)

    @cached_property
    def paired(self) -> Node | None:
        """The weight that lies beside the cumulative exponents: it is read wherever they are."""
        weights = [s.input.weight for s in self.scans] + [r.weight for r in self.reads]
        return next((w for w in weights if w is not None and w in self.early), None)

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        used = set(topological(o.node for o in self.graph.outputs))
        return tuple(n for n in self.graph.inputs if n in used)

    @cached_property
    def dtype(self) -> str:
        """The dtype of the operands of matrix products: the widest in which a factor's inputs are stored."""
        factors = [f for s in self.scans for f in (s.input.rows, s.input.columns)] + [r.factor for r in self.reads if r.factor is not None]
        stored = {n.type.dtype for n in topological(factors)
                  if n.op == "input" and n.kind == "real" and {self.rows, self.columns} & set(n.axes)}
        return next(iter(stored)) if len(stored) == 1 else "float32"


def describe_chunks(plan: ChunkPlan) -> str:
    """The plan as ``scanc show --stage loops`` prints it."""
    def word(node: Node | None) -> str:
        if node is None:
            return "1"
        if node.name or node.op == "const":
            return node.name or f"{node.attrs['value']:g}"
        inner = [word(a) for a in node.args]
        return f"{node.op}({', '.join(inner)})" if len(node.args) < 3 else node.op

    lines = [f"programs: {' '.join(plan.grid) or 'one'}; rows {plan.rows}, columns {plan.columns}; chunks of {plan.time}"
             + (", walked backwards" if plan.mirrored else "")]
    within = f"its own for each {plan.columns}" if plan.keyed else "summed within each chunk"
    lines.append(f"transition: 2^({word(plan.decay)}), {within}" + (f"; 0 where {word(plan.reset)}" if plan.reset else ""))
    for s in plan.scans:
        lines.append(f"{s.scan.name or 'scan'}: {'adjoint, carried back' if s.back else 'carried'}; input "
                     f"{word(s.input.weight)} · rows {word(s.input.rows)} ⊗ columns {word(s.input.columns)}")
    for r in plan.reads:
        name = r.of.scan.name or "scan"
        what = f"with {word(r.factor)}" if r.factor is not None else f"of {name} and {r.against.scan.name if r.against else ''}"
        name += " before the step" if r.before else ""
        lines.append(f"read {word(r.node) if r.node.name else r.kind}: {r.kind} of {name} {what}" if r.factor is not None
                     else f"read {r.kind} {what}")
    for store in plan.stores:
        lines.append(f"store {store.name}[{' '.join(store.output.axes)}]: "
                     + ("last carry" if store.final else "sum over " + ", ".join(store.gone) if store.gone else "value"))
    lines.append("one walk over the chunks" if plan.walks else "states at the chunks' borders first, then all chunks side by side")
    return "\n".join(lines)
