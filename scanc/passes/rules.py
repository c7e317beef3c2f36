"""What the rewriting passes share: applying one local rule to a whole graph, and keeping each value's type while doing so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scanc.errors import VerifyError
from scanc.ir import LEAVES, Builder, Graph, Node, rewrite

Rule = Callable[[Builder, Node], Node | None]


def apply(graph: Graph, rule: Rule) -> Graph:
    """``graph`` with ``rule`` applied to every node, arguments first; a rule gives None where it does not match.

    A replacement has the axes and the kind of what it replaces, so that no user of it changes its meaning.
    Raises VerifyError when a rule breaks that.
    """
    builder = Builder.of(graph)

    def step(node: Node, args: tuple[Node, ...]) -> Node:
        builder.where = node.where
        same = node if args == node.args else builder.like(node, args)
        new = rule(builder, same)
        return same if new is None else stand_in(graph, new, node)

    return rewrite(graph, step)


def stand_in(graph: Graph, new: Node, old: Node) -> Node:
    """``new`` in the place of ``old``: type checked, and called by the user's name unless it has one already."""
    if not alike(new, old):
        raise VerifyError(f"{old!r} was replaced by {new!r}, which has another type", op=graph.name, stage="canonical")
    if old.name is None or new.name is not None or new.op in LEAVES:
        return new
    # The user's word belongs to the value, and a broadcast is about to move further out or vanish.
    if new.op == "broadcast" and new.args[0].name == old.name:
        return new
    return replace(new, name=old.name, where=old.where)


def over(builder: Builder, value: Node, like: Node) -> Node | None:
    """``value`` over the axes of ``like``, or None where its kind differs: then it cannot stand in for it."""
    if value.kind != like.kind:
        return None
    return value if alike(value, like) else builder.broadcast(value, like.axes)


def alike(x: Node, y: Node) -> bool:
    """Whether x and y have the same axes and kind. The order of axes is no part of it: an input's is its tensor's."""
    return set(x.axes) == set(y.axes) and x.kind == y.kind


def constant(node: Node) -> Any:
    """The value of a constant, None for anything else."""
    return node.attrs["value"] if node.op == "const" else None


def uses(graph: Graph) -> Counter[Node]:
    """How often each node is read, by nodes and by outputs."""
    count: Counter[Node] = Counter(o.node for o in graph.outputs)
    for node in graph.nodes():
        count.update(node.args)
    return count
