"""Mamba-2 on the GPU that is here: the module and the model against the CPU, and that nothing waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from scanc.models import Mamba2, Mamba2Config
from scanc.ops.dropin import mamba2
from scanc.ops.dropin.speculative import accept_tokens, selective_state_update_tokens
from scanc.ops.dropin.ssd_combined import mamba_chunk_scan_combined
from tests.checks import normal, relative

# Matrix units round what they multiply; the CPU does not.
NEAR = 5e-3


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def scan_inputs(l: int) -> dict[str, Tensor]:
    made = {"x": normal(1, l, 4, 32, seed=0), "dt": normal(1, l, 4, seed=1), "A": -0.3 - normal(4, seed=2).abs()}
    return made | {"B": normal(1, l, 2, 64, seed=3), "C": normal(1, l, 2, 64, seed=4), "dt_bias": normal(4, seed=5)}


def test_packed_sequences_are_scanned_without_waiting() -> None:
    given, cu = scan_inputs(600), torch.tensor([0, 5, 5, 130, 599, 600])
    call = {"chunk_size": 64, "dt_softplus": True, "return_final_states": True, "return_varlen_states": True}
    wanted = mamba_chunk_scan_combined(**given, cu_seqlens=cu, **call)  # type: ignore[arg-type]
    here, cu_here = {k: v.cuda() for k, v in given.items()}, cu.cuda()
    mamba_chunk_scan_combined(**here, cu_seqlens=cu_here, **call)  # type: ignore[arg-type]
    with no_waiting():
        found = mamba_chunk_scan_combined(**here, cu_seqlens=cu_here, **call)  # type: ignore[arg-type]
    for f, w in zip(found, wanted, strict=True):
        assert relative(f.cpu(), w) <= NEAR


@pytest.mark.parametrize("packed", [False, True])
def test_module_trains_as_on_the_cpu(packed: bool) -> None:
    torch.manual_seed(0)
    module = mamba2.Mamba2(64, d_state=64, headdim=32, ngroups=2, d_ssm=64, norm_before_gate=packed)
    x, ids = normal(2, 300, 64, seed=1), (torch.arange(300) // 77).int().repeat(2, 1) if packed else None
    module(x, seq_idx=ids).square().mean().backward()
    wanted = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    module.cuda()(x.cuda(), seq_idx=None if ids is None else ids.cuda()).square().mean().backward()
    for name, p in module.named_parameters():
        assert wanted[name] is not None and p.grad is not None and relative(p.grad.cpu(), wanted[name]) <= NEAR, name


@torch.no_grad()
def test_model_decodes_on_from_a_prompt() -> None:
    torch.manual_seed(0)
    model = Mamba2(Mamba2Config(d_model=64, n_layer=2, vocab_size=61, d_state=32, headdim=32)).cuda()
    tokens = torch.randint(61, (2, 200), generator=torch.Generator().manual_seed(1)).cuda()
    whole, _ = model(tokens)
    _, state = model(tokens[:, :190])
    steps = torch.stack([model.step(tokens[:, t], state) for t in range(190, 200)], 1)
    assert relative(steps, whole[:, 190:]) <= NEAR


def test_drafted_tokens_stand_in_a_cuda_graph() -> None:
    state, where = normal(6, 4, 32, 16, seed=0).cuda(), torch.tensor([4, -1, 0], device="cuda")
    accepted = torch.tensor([2, 3, 0], device="cuda")
    x = {"x": normal(3, 3, 4, 32, seed=1), "dt": normal(3, 3, 4, 32, seed=2), "A": -normal(4, 32, 16, seed=3).abs()}
    x |= {"B": normal(3, 3, 2, 16, seed=4), "C": normal(3, 3, 2, 16, seed=5)}
    given = {k: v.cuda() for k, v in x.items()}

    def draft(held: Tensor) -> Tensor:
        out, states = selective_state_update_tokens(held, **given, dt_softplus=True, state_batch_indices=where)
        accept_tokens(held, states, accepted, where)
        return out

    kept = state.clone()
    wanted, held = draft(kept), state.clone()  # also compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = draft(held)
    held.copy_(state)
    graph.replay()
    assert torch.equal(out, wanted) and torch.equal(held, kept) and not torch.equal(held, state)
