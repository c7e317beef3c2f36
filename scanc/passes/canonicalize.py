"""The canonical form of a graph: what every later pass and backend may rely on.

    Pointwise ops are the primitives: add sub mul div neg maximum minimum where exp (complex only) exp2 expm1 log2 log1p sqrt
    rsqrt reciprocal abs sign tanh sin cos erf, comparisons, logic, real imag conj complex cast.
    Every value is there once; none is dead; constants stand on the right.
    Broadcasts are only where nothing else brings the axes.
    Products and sums do the least work per time step.

Meaning is kept: values are equal up to rounding, names are the user's. ``maximum`` and ``minimum`` must propagate NaN in
every backend.

``simplify`` is the same without the lowering. A gradient is best taken of its result: products are in their cheapest order
already, so the backward's are too, and softplus is still whole, with sigmoid for its derivative.
"""

from __future__ import annotations

from collections.abc import Callable

from scanc.errors import VerifyError
from scanc.ir import Graph
from scanc.passes.broadcasts import lift_broadcasts
from scanc.passes.fold import fold_constants
from scanc.passes.lower import lower_compounds
from scanc.passes.parts import take_parts_early
from scanc.passes.products import hoist_out_of_sums, reassociate_products
from scanc.passes.share import share
from scanc.passes.sums import merge_sums
from scanc.printer import print_graph

Passes = tuple[Callable[[Graph], Graph], ...]

SIMPLIFICATIONS: Passes = (
    share,                 # first: sigmoid(x) of silu and of its derivative become one, before either is taken apart
    fold_constants,        # before the rest, which need not look at constants in rows
    lift_broadcasts,       # before sums and products, so that they see which axes a factor really has
    merge_sums,            # after broadcasts have come to stand under the sums
    take_parts_early,      # before hoisting: a sum of real parts is what factors are then hoisted out of
    hoist_out_of_sums,     # before products are ordered: a hoisted factor joins the product outside
    reassociate_products,  # after sharing: only what is read once may be taken apart
    share,                 # last: the passes above leave equal values and dead ones behind
)
PASSES: Passes = (
    lower_compounds,       # first: the primitives it makes (log2 e above all) are what the others move and merge
    *SIMPLIFICATIONS,
)
# Each pass shrinks the graph or its cost, so the list settles; in practice within three rounds.
ROUNDS = 50


def canonicalize(graph: Graph) -> Graph:
    """``graph`` in canonical form; canonicalize(canonicalize(g)) prints the same as canonicalize(g).

    Before -> after:  exp(dt[b d l] * A[d n])  ->  exp2(dt * (A * 1.4426950408889634))
    Raises VerifyError if the passes do not settle, which no graph should cause.
    """
    return _settle(graph, PASSES, "canonical")


def simplify(graph: Graph) -> Graph:
    """``graph`` with the least work, its functions still whole: the form to take an adjoint of.

    Before -> after:  (dt * B[b n l]) * u  ->  (dt * u) * B, whose derivative by dt and u shares one sum over n.
    """
    return _settle(graph, SIMPLIFICATIONS, "trace")


def _settle(graph: Graph, passes: Passes, stage: str) -> Graph:
    before = print_graph(graph)
    for _ in range(ROUNDS):
        for run in passes:
            graph = run(graph)
        after = print_graph(graph)
        if after == before:
            return graph
        before = after
    raise VerifyError(f"the passes had not settled after {ROUNDS} rounds", op=graph.name, stage=stage)
