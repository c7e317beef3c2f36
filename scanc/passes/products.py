"""Products multiplied in the order that costs least, and sums rid of factors that do not vary along what is summed.

    mul(mul(dt[b d l], B[b n l]), u[b d l])  ->  mul(mul(dt, u), B)                 one product over b d l n instead of two
    mul(mul(dt[b d l], A[d n]), 1.44)        ->  mul(dt, mul(A, 1.44))              the constant goes where time is absent
    sum(mul(mul(x[b d l], C[b n l]), h), n)  ->  mul(x, sum(mul(C, h), n))
    mul(mul(g, prior(h)), a)                 ->  mul(mul(g, a), prior(h))            with g = scan(a, …) {shifted=true}

The last: a shifted scan carries a g on to the next step, so that this product is there anyway.
A product is taken apart through inner products and negations that nothing else reads: a value read elsewhere is computed
anyway. Integer products stay as they are written. The order of multiplication changes the last bits only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import combinations

from scanc.ir import Axes, Builder, Graph, Node, rewrite
from scanc.passes.rules import alike, constant, stand_in, uses

Cost = tuple[bool, int, int, bool] | tuple[()]
Pair = tuple[Node, Node]


def reassociate_products(graph: Graph) -> Graph:
    """``graph`` with every product in its cheapest order; one that cannot become cheaper keeps the user's."""
    return _on_products(graph, _cheapest)


def hoist_out_of_sums(graph: Graph) -> Graph:
    """``graph`` with factors that lack the summed axes multiplied after the sum."""
    return _on_products(graph, _hoist)


_Rule = Callable[["_Products", Node, Mapping[Node, Node]], Node | None]


def _on_products(graph: Graph, rule: _Rule) -> Graph:
    products = _Products(graph)
    done: dict[Node, Node] = {}

    def step(node: Node, args: tuple[Node, ...]) -> Node:
        b = products.builder
        b.where = node.where
        new = rule(products, node, done)
        done[node] = b.like(node, args) if new is None else stand_in(graph, new, node)
        return done[node]

    return rewrite(graph, step)


class _Products:
    """The products of one graph: taking them apart, costing them, putting them together."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = Builder.of(graph)
        self.uses = uses(graph)
        # What shifted scans carry on: products that cost nothing more.
        self.carried = [(n.args[0], n) for n in graph.nodes() if n.op == "scan" and n.attrs["shifted"]]
        # A product inside a product is taken apart with the outer one.
        self.inner = {a for n in graph.nodes() if _is_product(n) for a in n.args if self.opens(a)}

    def opens(self, node: Node) -> bool:
        return _is_product(node) and self.uses[node] == 1

    def cost(self, axes: Axes, kind: str) -> Cost:
        """How dear one operation over ``axes`` is: per time step, then over the state, then by count of axes."""
        state = sum(a in self.graph.state for a in axes)
        return (self.graph.time in axes, state, len(axes), kind == "complex")

    def take_apart(self, root: Node) -> tuple[list[Node], list[Cost]]:
        """The factors of ``root`` from left to right (a negation counts as the factor -1), and what its operations cost now."""
        factors: list[Node] = []
        costs: list[Cost] = []
        stack = [root]
        while stack:
            node = stack.pop()
            if node is root or self.opens(node):
                if not _is_pair(node.args, self.carried):
                    costs.append(self.cost(node.axes, node.kind))
                stack += [self.builder.const(-1.0), node.args[0]] if node.op == "neg" else reversed(node.args)
            else:
                factors.append(node)
        return factors, costs

    def put_together(self, factors: list[Node], carried: Sequence[Pair] = ()) -> tuple[Node, list[Cost]]:
        """The product of ``factors``, always multiplying the cheapest two, the leftmost of equals, ``carried`` ones first."""
        b = self.builder
        costs: list[Cost] = []
        values = [constant(f) for f in factors if f.op == "const"]
        rest = [f for f in factors if f.op != "const"]
        scale = reduce(lambda x, y: x * y, values, 1.0)
        work = [*rest, b.const(scale)] if scale != 1.0 or isinstance(scale, complex) or not rest else rest
        while len(work) > 1:
            pairs = [() if _is_pair((x, y), carried) else self.cost(b.union(x.axes, y.axes), _kind(x, y)) for x, y in combinations(work, 2)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            i, j = list(combinations(range(len(work)), 2))[best]
            costs += [cost] if (cost := pairs[best]) else []
            work[i] = _times(b, work[i], work[j])
            del work[j]
        return work[0], costs


def _cheapest(products: _Products, node: Node, done: Mapping[Node, Node]) -> Node | None:
    if not _is_product(node) or node in products.inner:
        return None
    factors, now = products.take_apart(node)
    if not _movable(factors):
        return None
    carried = [(done.get(a, a), done.get(scan, scan)) for a, scan in products.carried]
    made, then = products.put_together([done.get(f, f) for f in factors], carried)
    if not alike(made, node) or sorted(then, reverse=True) >= sorted(now, reverse=True):
        return None
    return made


def _hoist(products: _Products, node: Node, done: Mapping[Node, Node]) -> Node | None:
    if node.op != "sum" or not products.opens(node.args[0]):
        return None
    product = node.args[0]
    b = products.builder
    groups = products.graph.groups
    summed = {a for a in product.axes if a not in node.axes}
    within = {g for g, a in groups.items() if a in summed and g in node.axes}
    # A factor over g varies along the d that g divides, unless d is summed within each g only.
    varies = summed | {g for g, a in groups.items() if a in summed and g not in within}
    factors, _ = products.take_apart(product)
    kept = [done.get(f, f) for f in factors if varies & set(f.axes)]
    free = [done.get(f, f) for f in factors if not varies & set(f.axes)]
    if not free or not kept or not _movable(factors):
        return None
    body, _ = products.put_together(kept)
    total = b.sum_to(body, (*(a for a in body.axes if a not in summed), *within))
    made, _ = products.put_together([total, *free])
    return made if alike(made, node) else None


def _is_product(node: Node) -> bool:
    return node.op in ("mul", "neg") and node.kind in ("real", "complex")


def _is_pair(args: Sequence[Node], pairs: Sequence[Pair]) -> bool:
    return any(len(args) == 2 and (args[0] is x and args[1] is y or args[0] is y and args[1] is x) for x, y in pairs)


def _movable(factors: list[Node]) -> bool:
    """Whether the order is free: integers must not come to be multiplied as integers, nor constants to infinity."""
    scale = reduce(lambda x, y: x * y, (constant(f) for f in factors if f.op == "const"), 1.0)
    return math.isfinite(abs(scale)) and sum(f.kind in ("int", "bool") for f in factors) < 2


def _kind(*factors: Node) -> str:
    return "complex" if any(f.kind == "complex" for f in factors) else "real"


def _times(b: Builder, x: Node, y: Node) -> Node:
    return b.pointwise("neg", x) if constant(y) == -1.0 and y.kind == "real" else b.pointwise("mul", x, y)
