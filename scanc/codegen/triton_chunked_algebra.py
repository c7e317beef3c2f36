"""The algebra of one chunk as Triton prints it: decays, masked products, and what comes from the states at its borders.

Formulas and words are forms/chunked.py's. Everything printed is remembered in the scope, so that reads share what they have in common.
"""

from __future__ import annotations

from scanc.codegen.emit import Source
from scanc.codegen.triton_chunked import ChunkPrinter
from scanc.codegen.triton_chunked_parts import scores_ahead, scores_axes
from scanc.codegen.triton_chunked_source import MOST_EXPONENT, Scope
from scanc.forms.chunked import ChunkScan, Read
from scanc.ir import Node


class ChunkAlgebra(ChunkPrinter):
    """A kernel that multiplies chunks. ``masked_once``: what its decays are multiplied by is 0 where they are no later step's."""

    masked_once = False

    def factor(self, out: Source, node: Node, scope: Scope) -> str:
        """A factor as the operand of a product: in the stored dtype, 0 where it is padding."""
        stored = scope.made.get(("stored", node))
        if stored is not None and "t" in self.dims(node):
            return stored
        key = ("operand", node)
        if key not in scope.made:
            word = scope.known[node][0] if scope.known[node][0].isidentifier() else node.op
            name = scope.made[key] = scope.names.fresh(f"{word}_operand")
            masks = [f"in_time{self.when}", *self.masks(self.dims(node) - {"t"})]
            value = scope.known[node][0]
            if not self.dims(node) - {"t"}:
                value = f"tl.broadcast_to({value}, {self.extent({'t', 'p' if self.plan.rows in node.axes else 'n'})})"
            out(f"{name} = tl.where({' & '.join(masks)}, {value}, 0.0).to({self.operand_type})")
        return scope.made[key]

    def weight(self, out: Source, node: Node | None, scope: Scope, *, across: bool | None = None) -> str:
        """A weight, 0 at padding, [Q, 1] or ``across`` [1, Q], as the kernel's tiles have time where that is not said; "" for None."""
        if node is None:
            return ""
        across = self.turned if across is None else across
        if node is self.plan.paired:
            self.decays_ahead(out, scope)
            return f"{scope.made['w_row']}{self.along(across)}"
        key = ("weight", node, across)
        if key not in scope.made:
            name = scope.made[key] = scope.names.fresh(f"weight{scope.suffix}")
            if node not in self.plan.early:
                value = f"tl.where(in_time{self.when}, {scope.known[node][0]}, 0.0)"
                out(f"{name} = {value if across == self.turned else f'tl.trans({value})'}")
            else:
                out(f"{name} = tl.load({self.ahead(self.early_name(node), scope, self.steps(across))})")
        return scope.made[key]

    def decays(self, out: Source, scope: Scope) -> str:
        """L: [s, j] the decay from step j to a later step s, 0 where s is earlier; [j, s] where ``flipped``."""
        m = scope.made
        if "L" not in m:
            self.decays_ahead(out, scope)
            mask = "causal"
            if self.plan.reset is not None:
                down, across = (f"tl.load({self.ahead('resets', scope, self.steps(wide), 'int32')})" for wide in (False, True))
                mask += f" & ({down} == {across})"
            m["L"] = scope.names.fresh(f"decays{scope.suffix}")
            down, across = f"{m['g_row']}{self.along(False)}", f"{m['g_row']}{self.along(True)}"
            gap = f"{across} - {down}" if self.flipped else f"{down} - {across}"
            if self.masked_once:  # finite, whatever the steps before would have grown by
                out(f"{m['L']} = tl.exp2(tl.minimum({gap}, {MOST_EXPONENT}, propagate_nan=tl.PropagateNan.ALL))")
                return m["L"]
            out(f"{m['L']} = tl.exp2(tl.where({mask}, {gap}, float(\"-inf\")))")
        return m["L"]

    def edge(self, out: Source, scope: Scope, word: str) -> str:
        """enter: decays from before the chunk; leave: to its end; whole: over all of it. 0 where a reset lies between."""
        m = scope.made
        if word not in m:
            if word == "whole":
                text = f"tl.load({self.sums_place(scope)} + (Q - 1) * 4 + 2)"
            else:
                self.decays_ahead(out, scope)
                text = f"{m[f'{word}_row']}{self.along(self.turned)}"
            m[word] = scope.names.fresh(f"{word}{scope.suffix}")
            out(f"{m[word]} = {text}")
        return m[word]

    def dot(self, a: str, b: str, acc: str = "") -> str:
        return f"tl.dot({a}, {b}{f', {acc}' if acc else ''}{self.how})"

    def scores(self, out: Source, later: Node, earlier: Node, scope: Scope, common: Scope) -> str:
        """[s, j] = the product of a factor at step s with one at step j; [j, s] where ``flipped``."""
        where = common if self.shared(later) and self.shared(earlier) else scope
        key = ("scores", later, earlier)
        if key not in where.made:
            x, y = self.factor(out, later, where), self.factor(out, earlier, where)
            where.made[key] = where.names.fresh(f"scores{where.suffix}")
            x, y = (y, x) if self.flipped else (x, y)
            out(f"{where.made[key]} = {self.dot(f'tl.trans({x})', y) if self.turned else self.dot(x, f'tl.trans({y})')}")
            scope.made[key] = where.made[key]
        return where.made[key]

    def products_row(self, k: int, scope: Scope) -> str:
        """Which row of all products made ahead (triton_chunked_scores.py) a chunk's begin at."""
        self.argument(f"products{k}", (), "float32", "inner")
        text = ""
        for axis in scores_axes(self.plan, scores_ahead(self.plan, self.schedule)[k]):
            index = self.grid_index(axis, scope)
            text = f"({text} * size_{axis} + {index})" if text else index
        return f"{text} * padded + ts" if text else "ts"

    def products_tile(self, k: int, scope: Scope) -> str:
        """A chunk's matrix of them, as an expression."""
        return f"tl.load(products{k}_ptr + ({self.products_row(k, scope)} + {self.steps(False)}) * Q + {self.steps(True)})"

    def times_state(self, out: Source, factor: Node, scan: ChunkScan, scope: Scope) -> str:
        """A factor's product with the state at the chunk's border: over columns, a tile of rows; over rows, one of columns."""
        key = ("state", factor, scan)
        if key not in scope.made:
            scope.made[key] = scope.names.fresh(f"from_border{scope.suffix}")
            state, operand = scope.made["operand of state", scan], self.factor(out, factor, scope)
            if self.turned == (self.plan.rows in factor.axes):
                state = f"tl.trans({state})"
            out(f"{scope.made[key]} = {self.dot(state, operand) if self.turned else self.dot(operand, state)}")
        return scope.made[key]

    def matrix(self, out: Source, scores: str, weights: tuple[Node | None, Node | None], scope: Scope) -> str:
        """scores ∘ L ∘ weights, as an expression."""
        return " * ".join([scores, self.decays(out, scope), *(w for w in self._weights(weights, scope, out) if w)])

    def _weights(self, weights: tuple[Node | None, Node | None], scope: Scope, out: Source) -> tuple[str, str]:
        """The later and the earlier weight along their axes of a [Q, Q] matrix; "" for None."""
        return self.weight(out, weights[0], scope, across=self.flipped), self.weight(out, weights[1], scope, across=not self.flipped)

    def from_border(self, out: Source, read: Read, scope: Scope) -> str:
        """What a read has of the state at the chunk's border, as an expression."""
        assert read.factor is not None
        weight = self.weight(out, read.weight, scope)
        edge = self.edge(out, scope, "leave" if read.of.back else "enter")
        product = self.times_state(out, read.factor, read.of, scope)
        return " * ".join([product, edge, *([weight] if weight else [])])
