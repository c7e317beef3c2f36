"""What the kernels of all chunks leave of the gradients of decays and weights, for the kernel late to finish (triton_chunked_early.py)."""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked_algebra import ChunkAlgebra
from scanc.codegen.triton_chunked_source import Scope
from scanc.forms.chunked import ChunkScan, Read
from scanc.ir import Node


class GradientSums(ChunkAlgebra):
    """Sums of a head's own products at every step. ``met`` are values that results which come late are made of; ``by_rows`` says that
    inputs meet the adjoint's state in the product over rows, which the kernel has anyway."""

    met: tuple[Node, ...] = ()
    by_rows = False

    def _leave(self, out: Source, met: list[Node], scope: Scope) -> None:
        """Stores values that come late results are made of."""
        for node in met:
            out(f"tl.store({self.ahead(f'met{self.met.index(node)}', scope, 'tau')}, {scope.known[node][0]})")

    def _rows_matrix(self, out: Source, pair: tuple[Node, Node], scope: Scope) -> str:
        """L ∘ U_s U_jᵀ of one head, printed once."""
        if ("matrix", pair) not in scope.made:
            scores = self.scores(out, *pair, scope, scope)
            name = scope.made["matrix", pair] = scope.names.fresh("pairs")
            out(f"{name} = {self.matrix(out, scores, (None, None), scope)}")
        return scope.made["matrix", pair]

    @property
    def border_index(self) -> str:
        return f"(c // {self.span})" if self.span > 1 else "c"

    def edge(self, out: Source, scope: Scope, word: str) -> str:
        """Decays to and from the borders that are kept: through the chunk beside this one too, where that lies between."""
        if self.span == 1 or word in scope.made:
            return super().edge(out, scope, word)
        if "beside" not in scope.made:
            scope.made["beside"] = scope.names.fresh("beside")
            place = self.sums_place(scope, "(c ^ 1) * Q")
            out(f"{scope.made['beside']} = tl.load({place} + (Q - 1) * 4 + 2)")
        own = super().edge(out, scope, word)
        beyond = {"enter": "c % 2 == 1", "leave": "c % 2 == 0", "whole": ""}[word]
        name = scope.made[word] = scope.names.fresh(f"{word}_kept")
        factor = f"tl.where({beyond}, {scope.made['beside']}, 1.0)" if beyond else scope.made["beside"]
        out(f"{name} = {own} * {factor}")
        return name

    # Reads of decays and weights are left to the kernel late (w is 1 here where the weight itself is no value made ahead):
    #   decay_t = Σ_{s≥t} (enters_s + within_s - w_s without_s) + Σ_{j<t} w_j leaves_j + across          weight_j = leaves_j + without_j

    def _inside(self, out: Source, read: Read, scope: Scope) -> None:
        """within and without: the sums of W over earlier steps at each later one, and over later steps, less w, at each earlier one."""
        assert read.against is not None
        late, early, i = read.against.input, read.of.input, self.plan.reads.index(read)
        pairs = self._rows_matrix(out, (late.rows, early.rows), scope)
        scores = self.scores(out, late.columns, early.columns, scope, scope)
        later, earlier = self._weights((late.weight, early.weight), scope, out)
        inside = scope.names.fresh("inside")
        held = [w for w in (later, earlier if early.weight not in self.plan.early else "") if w]
        out(f"{inside} = {' * '.join([scores, pairs, *held])}")
        weighted = f"{inside} * {earlier}" if earlier and early.weight in self.plan.early else inside
        # Which of the two are sums over columns is a matter of orientation.
        wide, down = ("sigma", 0), ("tau", 1)
        for word, text, (index, axis) in zip(("within", "without"), (weighted, inside), (wide, down) if self.flipped else (down, wide),
                                             strict=True):
            out(f"tl.store({self.ahead(f'{word}{i}', scope, index)}, {self.total(text, axis)})")

    def _entering(self, out: Source, read: Read, scope: Scope, beside: Node | None) -> None:
        """enters: later inputs against the state before the chunk. A sum over rows ``beside`` it shares its reduction."""
        assert read.against is not None
        late, i = read.against.input, self.plan.reads.index(read)
        entering = self._border_product(out, late.rows, late.columns, late.weight, read.of, "enter", scope, beside)
        out(f"tl.store({self.ahead(f'enters{i}', scope, 'tau')}, {entering})")

    def _leaving(self, out: Source, read: Read, scope: Scope, beside: Node | None) -> None:
        """leaves: earlier inputs, less w, against the adjoint after the chunk.

        A sum over rows ``beside`` it shares its reduction: alone, Triton would load that sum's tiles anew, a row a thread.
        """
        assert read.against is not None
        early, i = read.of.input, self.plan.reads.index(read)
        weight = early.weight if early.weight not in self.plan.early else None
        if self.by_rows:
            product = self.times_state(out, early.rows, read.against, scope)
            w = self.weight(out, weight, scope)
            total = self.total(f"{product} * {scope.known[early.columns][0]}", 1)
            leaving = " * ".join([total, self.edge(out, scope, "leave"), *([w] if w else [])])
        else:
            leaving = self._border_product(out, early.rows, early.columns, weight, read.against, "leave", scope, beside)
        out(f"tl.store({self.ahead(f'leaves{i}', scope, 'tau')}, {leaving})")

    def _across(self, out: Source, read: Read, scope: Scope) -> None:
        """across: 2^G ⟨E, H⟩, of inputs before the chunk against inputs after it."""
        assert read.against is not None
        i = self.plan.reads.index(read)
        one, other = (scope.made["operand of state", s] for s in (read.of, read.against))
        # The trace of a product: tiles go to the matrix units from shared memory, where an elementwise product would take registers.
        left, right, diagonal = one, f"tl.trans({other})", "p_state == p"
        if self.BN < self.BP:
            left, right, diagonal = f"tl.trans({one})", other, "tl.arange(0, BN)[:, None] == n_state"
        product = self.total(self.total(f"tl.where({diagonal}, {self.dot(left, right)}, 0.0)", 1), 0)
        whole = self.edge(out, scope, "whole")
        self.argument(f"across{i}", (), "float32", "inner")
        count = f"(chunks // {self.span})" if self.span > 1 else "chunks"
        at = f"{self.grid_row(scope)} * {count} + {self.border_index}"
        out(f"tl.store(across{i}_ptr + {at} + tl.full((1, 1), 0, tl.int32), {product} * {whole})")

    def _border_product(self, out: Source, rows: Node, columns: Node, weight: Node | None, scan: ChunkScan, edge: str, scope: Scope,
                        beside: Node | None = None) -> str:
        """⟨rows_t ⊗ columns_t, decayed state at the border⟩ at every step. The product over rows is the smaller one to hold.

        A sum over rows ``beside`` is left too.
        """
        product, other = self.times_state(out, columns, scan, scope), scope.known[rows][0]
        text, w = f"{product} * {other}", self.weight(out, weight, scope)
        if beside is None:
            total = self.total(text, 1)
        else:
            self.values(out, self.plan.body([beside.args[0]], frozenset(self.plan.early)), scope)
            total, name = scope.names.fresh("leaving"), scope.names.of(beside)
            both = f"{text}, {self.padded_to_zero(scope.known[beside.args[0]][0], 'p')}"
            out(f"{total}, {name} = {self.dialect.helper('two_totals')}({both}, 1)")
            scope.known[beside] = (name,)
            self._leave(out, [beside], scope)
        return f"{total} * {self.edge(out, scope, edge)}" + (f" * {w}" if w else "")
