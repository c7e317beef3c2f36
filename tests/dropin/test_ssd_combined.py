"""SSD and Mamba-2's block against the recurrence one step at a time in float64: values, states, gradients, packed sequences."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.ops.dropin import ssd_chunks, ssd_combined
from scanc.ops.dropin.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from tests.checks import GRADIENT, close, leaves_of, normal, relative, wide

B_, L_, H_, P_, G_, N_, W_, Q_ = 2, 21, 4, 3, 2, 5, 4, 8
OPEN = (0.0, float("inf"))
Block = Callable[..., Any]


def inputs(b: int = B_, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "x": normal(b, L_, H_, P_, seed=0, dtype=dtype),
        "dt": normal(b, L_, H_, seed=1, dtype=dtype),
        "A": -0.3 - normal(H_, seed=2).abs(),
        "B": normal(b, L_, G_, N_, seed=3, dtype=dtype),
        "C": normal(b, L_, G_, N_, seed=4, dtype=dtype),
        "D": normal(H_, seed=5),
        "z": normal(b, L_, H_, P_, seed=6, dtype=dtype),
        "dt_bias": normal(H_, seed=7),
        "initial_states": normal(b, H_, P_, N_, seed=8),
    }


def steps(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = OPEN,
) -> tuple[Tensor, Tensor]:
    """(y, last state): the equations, one step after another."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], dim=2) for t in (B, C))
    h = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if initial_states is None else initial_states
    rows = []
    for t in range(x.shape[1]):
        if seq_idx is not None and t:
            h = h * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        decay, step = torch.exp(dt[:, t] * A)[..., None, None], dt[:, t, :, None, None]
        h = decay * h + step * x[:, t].unsqueeze(-1) * B[:, t].unsqueeze(-2)
        rows.append((h * C[:, t].unsqueeze(-2)).sum(-1))
    y = torch.stack(rows, dim=1)
    if D is not None:
        y = y + (D.unsqueeze(-1) if D.dim() == 1 else D) * x
    return (y if z is None else y * F.silu(z)), h


def agree(found: Any, wanted: Any, leaves: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Every result, and the gradients of all of them together by every leaf."""
    for f, w in zip(found, wanted, strict=True):
        close(f, w)
    come = [normal(*w.shape, seed=20 + i) for i, w in enumerate(wanted)]
    got = torch.autograd.grad(found, list(leaves.values()), [c.to(f.dtype) for c, f in zip(come, found, strict=True)])
    right = torch.autograd.grad(wanted, list(truth.values()), [wide(c) for c in come])
    for name, g, r in zip(leaves, got, right, strict=True):
        close(g, r, GRADIENT, name)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {"dt_softplus": True}),
        ({"D": normal(H_, P_, seed=9)}, {"dt_softplus": True, "dt_limit": (0.4, 1.1)}),
        ({"D": None, "z": None, "dt_bias": None, "initial_states": None}, {}),  # steps below 0 are limited to 0
        ({"seq_idx": torch.tensor([[0] * 5 + [1] * 16, [3] * 20 + [9]], dtype=torch.int32)}, {"dt_softplus": True}),
    ],
)
def test_values_states_and_gradients(change: dict[str, Any], options: dict[str, Any]) -> None:
    given = {k: v for k, v in (inputs() | change).items() if v is not None}
    leaves = leaves_of({k: v for k, v in given.items() if k != "seq_idx"})
    truth = {k: wide(v).requires_grad_() for k, v in leaves.items()}
    found = mamba_chunk_scan_combined(**given, chunk_size=Q_, return_final_states=True, **options)
    ids = {k: v for k, v in given.items() if k == "seq_idx"}
    agree(found, steps(**truth, **ids, **options), leaves, truth)


def test_a_limit_stops_the_gradient_outside_it() -> None:
    given = {k: v for k, v in inputs().items() if k not in ("D", "z", "dt_bias")}
    dt = given["dt"].requires_grad_()
    free: Any = mamba_chunk_scan_combined(**given, chunk_size=Q_, dt_softplus=True)
    out: Any = mamba_chunk_scan_combined(**given, chunk_size=Q_, dt_softplus=True, dt_limit=(0.5, 1.0))
    assert relative(out, free) > 0.1
    out.sum().backward()
    step = F.softplus(dt.detach())
    inside = (step > 0.5) & (step < 1.0)
    assert dt.grad is not None and inside.any() and not inside.all()
    assert not dt.grad[~inside].any() and dt.grad[inside].all()


@pytest.mark.parametrize("bounds", [(0, 3, 3, 8, 9, 21), (0, 0, 21), (0, 16, 17)])
@pytest.mark.parametrize("started", [False, True])
def test_packed_sequences(bounds: tuple[int, ...], started: bool) -> None:
    """Each packed sequence as if alone, the state at its end included; an initial state goes on in the first that has a step."""
    given = inputs(b=1)
    if not started:
        del given["initial_states"]
    cu = torch.tensor(bounds, dtype=torch.int32)
    leaves = leaves_of(given)
    truth = {k: wide(v).requires_grad_() for k, v in given.items()}
    found = mamba_chunk_scan_combined(**given, chunk_size=Q_, cu_seqlens=cu, dt_softplus=True, return_varlen_states=True)
    rows, ends = [], []
    for s, e in zip(bounds[:-1], bounds[1:], strict=True):
        own = {k: v[:, s:e] if k in ("x", "dt", "B", "C", "z") else v for k, v in truth.items()}
        if s > 0:
            own.pop("initial_states", None)
        y, h = steps(**own, dt_softplus=True) if e > s else (own["x"], wide(torch.zeros(1, H_, P_, N_)))
        rows.append(y)
        ends.append(h)
    y, states = found
    agree((y[:, : bounds[-1]], states), (torch.cat(rows, 1), torch.cat(ends)), leaves, truth)


def test_chunks_are_a_matter_of_speed() -> None:
    given = inputs(b=1)
    cu = torch.tensor([0, 2, 13, 21])
    made = [
        mamba_chunk_scan_combined(**given, chunk_size=q, cu_seqlens=cu, return_final_states=True, return_varlen_states=True)
        for q in (1, 5, 64)
    ]
    for other in made[1:]:
        for a, b in zip(other, made[0], strict=True):
            close(a, b)
    close(made[0][1], made[0][2][-1:])


def test_half_precision_and_its_states() -> None:
    given = inputs(dtype=torch.bfloat16)
    y, state = mamba_chunk_scan_combined(**given, chunk_size=Q_, dt_softplus=True, return_final_states=True, state_dtype=torch.bfloat16)
    wanted = steps(**{k: wide(v) for k, v in given.items()}, dt_softplus=True)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    close(y, wanted[0])
    close(state, wanted[1])


def test_references_agree() -> None:
    given = inputs()
    del given["initial_states"]
    truth = {k: wide(v) for k, v in given.items()}
    wanted = steps(**truth, dt_softplus=True)[0]
    close(ssd_combined.ssd_chunk_scan_combined_ref(**truth, chunk_size=Q_, dt_softplus=True), wanted)
    close(ssd_combined.ssd_selective_scan(**given, dt_softplus=True), wanted)
    close(ssd_combined.mamba_chunk_scan(**given, chunk_size=Q_, dt_softplus=True), wanted)
    limited = steps(**truth, dt_softplus=True, dt_limit=(0.4, 1.0))[0]
    close(ssd_combined.ssd_selective_scan(**given, dt_softplus=True, dt_limit=(0.4, 1.0)), limited)


def test_parts_of_the_chunked_algorithm() -> None:
    given = {k: wide(v) for k, v in inputs().items()}
    sums, dt = ssd_chunks.chunk_cumsum(given["dt"], given["A"], Q_, given["dt_bias"], True)
    assert dt.shape == (B_, H_, 3, Q_) and not dt[..., -1, L_ % Q_ :].any()
    added = ssd_chunks.chunk_state(given["B"], given["x"], dt, sums)
    close(added, ssd_chunks.chunk_state_ref(given["B"], given["x"], dt, sums))
    flat, start = added.flatten(-2), given["initial_states"].flatten(-2)
    for f, w in zip(
        ssd_chunks.state_passing(flat, sums[..., -1], start), ssd_chunks.state_passing_ref(flat, sums[..., -1], start), strict=True
    ):
        close(f, w)
    around = {k: given[k] for k in ("D", "z")}
    read = {**around, "B": given["B"], "C": given["C"], "x": given["x"], "dt": dt, "dA_cumsum": sums, "prev_states": added}
    close(ssd_chunks.chunk_scan(**read), ssd_chunks.chunk_scan_ref(**read))


# -- the block --------------------------------------------------------------------------------------------------------------------


def block_inputs(d_nonssm: int = 0, out: bool = True, b: int = B_) -> dict[str, Any]:
    d, gn = H_ * P_, G_ * N_
    made = {
        "zxbcdt": normal(b, L_, 2 * d_nonssm + 2 * d + 2 * gn + H_, seed=10),
        "conv1d_weight": normal(d + 2 * gn, W_, seed=11, scale=0.5),
        "conv1d_bias": normal(d + 2 * gn, seed=12),
        "dt_bias": normal(H_, seed=13),
        "A": -0.3 - normal(H_, seed=14).abs(),
        "D": normal(H_, seed=15),
        "initial_states": normal(b, H_, P_, N_, seed=16),
        "rmsnorm_weight": normal(d, seed=17),
    }
    if out:
        made |= {"outproj_weight": normal(7, d_nonssm + d, seed=18), "outproj_bias": normal(7, seed=19)}
    return made


def block_steps(
    x: dict[str, Tensor], norm_before_gate: bool = True, silu: bool = True, limit: Any = OPEN, ids: Tensor | None = None
) -> Any:
    """The block in torch operations; (out, last state)."""
    d, gn = H_ * P_, G_ * N_
    rest = (x["zxbcdt"].shape[-1] - 2 * d - 2 * gn - H_) // 2
    z0, x0, z, xBC, dt = x["zxbcdt"].split([rest, rest, d, d + 2 * gn, H_], dim=-1)
    seen, own = F.pad(xBC, (0, 0, W_ - 1, 0)), torch.ones(x["zxbcdt"].shape[0], L_, W_)
    if ids is not None:
        past = F.pad(ids, (W_ - 1, 0), value=-1)
        own = torch.stack([past[:, j : j + L_] == ids for j in range(W_)], dim=-1).double()
    conv = torch.stack([own[..., j, None] * seen[:, j : j + L_] * x["conv1d_weight"][:, j] for j in range(W_)]).sum(0) + x["conv1d_bias"]
    u, B, C = (F.silu(conv) if silu else conv).split([d, gn, gn], dim=-1)
    u, B, C = u.unflatten(-1, (H_, P_)), B.unflatten(-1, (G_, N_)), C.unflatten(-1, (G_, N_))
    gate = z.unflatten(-1, (H_, P_)) if "rmsnorm_weight" not in x else None
    y, state = steps(u, dt, x["A"], B, C, x["D"], gate, x["dt_bias"], x.get("initial_states"), ids, True, limit)
    y = y.flatten(-2)
    if "rmsnorm_weight" in x:
        y = y if norm_before_gate else y * F.silu(z)
        y = F.rms_norm(y.unflatten(-1, (G_, -1)), (d // G_,), eps=1e-6).flatten(-2) * x["rmsnorm_weight"]
        y = y * F.silu(z) if norm_before_gate else y
    y = torch.cat([F.silu(z0) * x0, y], dim=-1)
    return (F.linear(y, x["outproj_weight"], x["outproj_bias"]) if "outproj_weight" in x else y), state


@pytest.mark.parametrize(
    ("without", "d_nonssm", "options"),
    [
        ((), 0, {}),
        (("initial_states",), 5, {"norm_before_gate": False, "seq_idx": True}),
        (("rmsnorm_weight", "outproj_weight", "outproj_bias"), 3, {"dt_limit": (0.3, 1.0)}),
        (("outproj_weight", "outproj_bias"), 0, {"activation": None}),
    ],
)
def test_block(without: tuple[str, ...], d_nonssm: int, options: dict[str, Any]) -> None:
    given = {k: v for k, v in block_inputs(d_nonssm).items() if k not in without}
    ids = (torch.arange(L_) // 6).int().repeat(B_, 1) if options.pop("seq_idx", False) else None
    leaves = leaves_of(given)
    truth = {k: wide(v).requires_grad_() for k, v in given.items()}
    found = mamba_split_conv1d_scan_combined(
        **given, chunk_size=Q_, headdim=P_, ngroups=G_, return_final_states=True, seq_idx=ids, **options
    )
    wanted = block_steps(
        truth, options.get("norm_before_gate", True), options.get("activation", "silu") is not None, options.get("dt_limit", OPEN), ids
    )
    agree(found, wanted, leaves, truth)


def test_block_references_agree() -> None:
    given = {k: v for k, v in block_inputs().items() if k != "initial_states"}
    out = mamba_split_conv1d_scan_combined(**given, chunk_size=Q_, headdim=P_, ngroups=G_)
    close(out, ssd_combined.mamba_split_conv1d_scan_ref(**given, chunk_size=Q_, headdim=P_, ngroups=G_))  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["scan", "block"])
def test_compiles_whole(call: str) -> None:
    if call == "scan":
        given: dict[str, Any] = inputs(b=1) | {"cu_seqlens": torch.tensor([0, 4, 21]), "return_varlen_states": True}
        function: Block = mamba_chunk_scan_combined
    else:
        given = block_inputs() | {"headdim": P_, "ngroups": G_, "return_final_states": True}
        function = mamba_split_conv1d_scan_combined
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for f, w in zip(compiled(**given, chunk_size=Q_), function(**given, chunk_size=Q_), strict=True):
        close(f, w)


def test_refusals_name_what_is_wrong() -> None:
    given = inputs()
    with pytest.raises(ArgumentError, match="'cu_seqlens' is missing"):
        mamba_chunk_scan_combined(**given, chunk_size=Q_, return_varlen_states=True)
    with pytest.raises(ArgumentError, match="batch of 2"):
        mamba_chunk_scan_combined(**given, chunk_size=Q_, cu_seqlens=torch.tensor([0, 21]))
    with pytest.raises(ArgumentError, match="'dt'"):
        mamba_chunk_scan_combined(**{**given, "dt": given["dt"][:, 1:]}, chunk_size=Q_)
    block = block_inputs()
    with pytest.raises(ArgumentError, match="'headdim' is missing"):
        mamba_split_conv1d_scan_combined(**block, chunk_size=Q_)
    with pytest.raises(ArgumentError, match="'zxbcdt'"):
        mamba_split_conv1d_scan_combined(**{**block, "zxbcdt": block["zxbcdt"][..., 1:]}, chunk_size=Q_, headdim=P_, ngroups=G_)
    with pytest.raises(ArgumentError, match="'outproj_bias'"):
        mamba_split_conv1d_scan_combined(**{**block, "outproj_weight": None}, chunk_size=Q_, headdim=P_, ngroups=G_)


def test_signatures_are_mamba_ssms() -> None:
    scan = (
        "x dt A B C chunk_size D z dt_bias initial_states seq_idx cu_seqlens dt_softplus dt_limit return_final_states "
        "return_varlen_states state_dtype"
    )
    block = (
        "zxbcdt conv1d_weight conv1d_bias dt_bias A D chunk_size initial_states seq_idx dt_limit return_final_states activation "
        "rmsnorm_weight rmsnorm_eps outproj_weight outproj_bias headdim ngroups norm_before_gate state_dtype"
    )
    for function, names in ((mamba_chunk_scan_combined, scan), (mamba_split_conv1d_scan_combined, block)):
        assert list(inspect.signature(function).parameters) == names.split()


@pytest.mark.parametrize("without", [(), ("rmsnorm_weight", "initial_states")])
@pytest.mark.parametrize("asked", [None, ("conv1d_weight", "A"), ("zxbcdt",)])
def test_the_block_in_one_is_the_chain(monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], asked: tuple[str, ...] | None) -> None:
    """Whatever gradients are asked for, and gradients of gradients too."""
    given = {k: v for k, v in block_inputs(out=False).items() if k not in without}
    names = [k for k in given if asked is None or k in asked]
    dy, dstate = normal(B_, L_, H_ * P_, seed=20), normal(B_, H_, P_, N_, seed=21)

    def gradients() -> list[Tensor]:
        leaves = {k: v.clone().requires_grad_(k in names) for k, v in given.items()}
        out, state = mamba_split_conv1d_scan_combined(**leaves, chunk_size=Q_, headdim=P_, ngroups=G_, return_final_states=True)
        first = torch.autograd.grad([out, state], [leaves[k] for k in names], [dy, dstate], retain_graph=True)
        alone = torch.autograd.grad(out, [leaves[k] for k in names], dy, retain_graph=True)
        again = torch.autograd.grad(out, [leaves[k] for k in names], dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), [leaves[k] for k in names])
        return [*first, *alone, *second]

    whole = gradients()
    monkeypatch.setattr(ssd_combined, "is_plain", lambda *_, **__: False)
    for found, wanted in zip(whole, gradients(), strict=True):
        close(found, wanted, GRADIENT)
