"""Divides a kernel's work between the threads of a CUDA block, before anything is printed.

    PROLOGUE  each value before the scans, once per lane and step, by whichever thread     dt = softplus(delta + bias)
    WALK      step after step, by the threads that hold a lane's states                    h, y = sum(C h)
    EPILOGUE  each value after the scans, once per lane and step, by whichever thread      y silu(z)

Without this division every one of the threads that share a lane would compute softplus and silu again. Values cross from one phase
to the next through *tiles* in shared memory, [steps][lanes] floats; a value the walk leaves may take the place of one it has read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from scanc.forms.plan import Plan, Region, Store, _topological_until
from scanc.ir import Node, is_pointwise, topological

FREE = ("const", "index", "size")
CHEAP = ("add", "sub", "mul", "neg", "abs", "maximum", "minimum", "where", "not", "and", "or", "lt", "le", "gt", "ge", "eq", "ne",
         "real", "imag", "complex", "conj")


@dataclass
class Phases:
    """Which phase each node of a plan belongs to, and which values cross between phases."""

    plan: Plan
    _walked: dict[tuple[Node, ...], tuple[Node, ...]] = field(default_factory=dict)

    def unstated(self, node: Node) -> bool:
        return self.plan.timed(node) and not self.plan.has(node, self.plan.state)

    @cached_property
    def behind(self) -> frozenset[Node]:
        """Nodes that are part of the walk by what they are, or depend on such."""
        found: set[Node] = set()
        for node in topological([*(o.node for o in self.plan.graph.outputs), *(s.value for s in self.plan.stores), *self.plan.scans]):
            if self.core(node) or any(a in found for a in node.args):
                found.add(node)
        return frozenset(found)

    def core(self, node: Node) -> bool:
        """Whether a node can only be computed step by step with the states at hand."""
        if not self.plan.timed(node):
            return False
        return node.op in ("scan", "prior", "sum") or self.plan.region.get(node) == Region.SCAN

    def early(self, node: Node) -> bool:
        """A value of a step that needs no state."""
        return self.unstated(node) and node not in self.behind

    def walk(self, body: tuple[Node, ...]) -> tuple[Node, ...]:
        """The nodes of a body computed in the walk, in order."""
        if body not in self._walked:
            needed: set[Node] = set()
            for node in reversed(body):
                if self.core(node) or node in needed:
                    needed |= set(node.args)
            kept = {n for n in body if self.core(n) or (n in needed and n in self.behind)}
            taken = self._cheap(kept, body)
            self._walked[body] = tuple(n for n in body if n in kept or n in taken)
        return self._walked[body]

    def _cheap(self, kept: set[Node], body: tuple[Node, ...]) -> set[Node]:
        """Early values that cost less made in the walk, from others that cross anyway, than read from a tile of their own."""
        crossing = {a for n in kept for a in n.args if self.early(a) and a.op not in FREE}
        taken: set[Node] = set()
        for node in reversed(body):
            if node in crossing and is_pointwise(node) and node.op in CHEAP:
                rest = crossing - {node}
                if all(a in rest or a.op in FREE or not self.plan.timed(a) for a in node.args):
                    taken.add(node)
                    crossing = rest
        return taken

    def crossing(self, *bodies: tuple[Node, ...]) -> list[Node]:
        """Early values that the walks of ``bodies`` read from tiles."""
        found: dict[Node, None] = {}
        for body in bodies:
            walk = set(self.walk(body))
            for node in self.walk(body):
                found.update((a, None) for a in node.args if a not in walk and self.early(a) and a.op not in FREE)
        return list(found)

    # -- the epilogue -----------------------------------------------------------------------------------------------------------

    @cached_property
    def late_stores(self) -> tuple[Store, ...]:
        """Stores of values without a state axis: the epilogue makes and writes them."""
        return tuple(s for s in self.plan.stores if s.kind != "final" and not self.plan.has(s.value, self.plan.state))

    def epilogue(self, given: Iterable[Node] = ()) -> list[Node]:
        """Nodes of the epilogue in order; walked values and ``given`` ones are leaves."""
        leaves = set(self.walk(self.plan.main_body)) & self.behind | set(given)
        leaves |= {n for n in self.plan.main_body if not self.plan.timed(n)}
        return [n for n in _topological_until([s.value for s in self.late_stores], leaves) if self.plan.timed(n)]

    def left(self, epilogue: Iterable[Node]) -> list[Node]:
        """Walked values the epilogue reads."""
        walk = set(self.walk(self.plan.main_body)) & self.behind
        return [n for n in epilogue if n in walk]

    def worth_keeping(self, crossing: Iterable[Node]) -> list[Node]:
        """Crossing values the epilogue reads back, since making them again would need more costly functions."""
        kept: list[Node] = []
        for node in crossing:
            if node.op in ("input", "shift"):
                continue
            without = self.epilogue(kept)
            if node in without and self._cost(without) > self._cost(self.epilogue([*kept, node])):
                kept.append(node)
        return kept

    @staticmethod
    def _cost(nodes: list[Node]) -> int:
        return sum(is_pointwise(n) and n.op not in CHEAP for n in nodes)
