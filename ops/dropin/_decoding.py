"""How the modules decode: states kept between calls, as mamba_ssm's generation does, and the step of their scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.dispatch import cache_bytes
from scanc.eager import Recall
from scanc.ir import Builder, Graph, Node, rewrite
from scanc.op import Op
from scanc.ops.dropin._common import need


def kept_states(mixer: Any, inference_params: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    """A mixer's (conv_state, ssm_state), kept under its ``layer_idx`` in ``inference_params.key_value_memory_dict``; made if new."""
    op, remedy = type(mixer).__name__, "Give each layer a number of its own."
    need(mixer.layer_idx is not None, op, "layer_idx", "None", "states are kept under it", remedy)
    kept = inference_params.key_value_memory_dict
    if mixer.layer_idx not in kept:
        kept[mixer.layer_idx] = mixer.allocate_inference_cache(batch_size, 0)
    return kept[mixer.layer_idx]


def one_token(op: str, hidden_states: Tensor) -> Tensor:
    """hidden_states (b 1 m) -> (b m). Raises ArgumentError on more."""
    long = hidden_states.shape[1]
    remedy = "Call the module on a prompt with seqlen_offset = 0."
    need(long == 1, op, "hidden_states", f"{long} long", "a step takes one token", remedy)
    return hidden_states[:, 0]


def last_inputs(x: Tensor, length: int) -> Tensor:
    """The last ``length`` of x (b d l) along time, zeros before the first."""
    return F.pad(x, (max(length - x.shape[-1], 0), 0))[..., -length:]


def read_soon(state: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Of a layer's scan's state and its output projection's weight what a kernel before the scan had better bring nearer: the weight too
    where the state, read and written in between, leaves it in the cache. Nothing for several sequences, whose own states keep memory
    busy: with it a layer's step took 3 to 6 % longer at 16 and 128 of them on an H100."""
    if torch.compiler.is_compiling() or state.shape[0] > 1:
        return ()
    both = sum(t.numel() * t.element_size() for t in (state, weight))
    return (state, weight) if 5 * both <= 4 * cache_bytes(state.device) else (state,)


_known: dict[int, tuple[Graph, Graph]] = {}  # steps' graphs by their identity, which is kept with them


def _of_logarithm(graph: Graph) -> Graph:
    """A step's graph whose input A is the logarithm of the rate of decay: -exp(A) stands in its place."""
    if id(graph) in _known:
        return _known[id(graph)][1]
    b = Builder.of(graph)

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        return b.like(node, tuple(b.pointwise("neg", b.pointwise("exp", x)) if x.op == "input" and x.name == "A" else x for x in args))

    made = replace(rewrite(graph, rule), name=f"{graph.name}_of_logarithm", origin=None)
    _known[id(graph)] = graph, made
    return made


_steps = Recall()


@torch.no_grad()
def step_of_logarithm(op: Op, state: Tensor, tensors: Mapping[str, Tensor | None], options: Mapping[str, Any]) -> Tensor:
    """``op.step(state, ...)`` with A = -exp(tensors["A"]), which the step's own kernel makes: a layer keeps the logarithm.

    ``tensors`` by the names of the op's arguments, but for the state.
    """
    if torch.compiler.is_compiling():
        return op.step(state, **{**tensors, "A": -torch.exp(tensors["A"].float())}, **options)  # type: ignore[union-attr]
    given, more = (state, *tensors.values()), (op.name, *options.items())
    again = _steps.find(given, *more)
    if again is not None:
        return again(given)
    dispatch, name = op._registered.dispatch, op._registered.state
    graph = _of_logarithm(dispatch.step_graph(name, state, tensors, {**op.options, **options}))
    every: dict[str, Any] = {name: state, **tensors}
    route = dispatch.route(graph, every)
    y = route.run(every, {o: state for o, i in graph.inplace.items() if i == name})[route.results[0]]
    places = {n: (i, 0) for i, (n, t) in enumerate(every.items()) if t is not None}
    _steps.keep(route.direct(places, many=False), given, *more)
    return y
