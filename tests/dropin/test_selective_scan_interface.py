"""selective_scan_fn and mamba_inner_fn against a loop over time in float64: values, gradients, compilation, refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scanc.errors import ArgumentError
from scanc.ops.dropin.selective_scan_interface import mamba_inner_fn, mamba_inner_ref, selective_scan_fn, selective_scan_ref
from tests.checks import GRADIENT, close, leaves_of, normal, wide

B_, D_, L_, N_, R_ = 2, 6, 19, 4, 3


def scan_inputs(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """``kind``: real or complex A, then v(ariable), g(rouped) or c(onstant) B and C, as "real gg" or "complex cv"."""
    field, of = kind.split()
    parts = 2 if field == "complex" else 1

    def driven(how: str, seed: int) -> Tensor:
        if how == "c":
            return normal(D_, N_, seed=seed, dtype=torch.complex64 if field == "complex" else torch.float32)
        return normal(*((B_, N_) if how == "v" else (B_, 3, N_)), L_ * parts, seed=seed, dtype=dtype)

    A = -0.2 - normal(D_, N_, seed=3).abs()
    return {
        "u": normal(B_, D_, L_, seed=1, dtype=dtype),
        "delta": normal(B_, D_, L_, seed=2, dtype=dtype, scale=0.5),
        "A": A + 1j * normal(D_, N_, seed=4) if field == "complex" else A,
        "B": driven(of[0], 5),
        "C": driven(of[1], 6),
        "D": normal(D_, seed=7),
        "z": normal(B_, D_, L_, seed=8, dtype=dtype),
        "delta_bias": normal(D_, seed=9) - 1,
    }


@pytest.mark.parametrize("kind", ["real gg", "real cv", "complex vc"])
def test_scan(kind: str) -> None:
    """Both results and the gradients that come in through both, the last state's too."""
    inputs = scan_inputs(kind)
    given, truth = {k: v.clone() for k, v in inputs.items()}, {k: wide(v) for k, v in inputs.items()}
    leaves, true_leaves = leaves_of(given), leaves_of(truth)
    made: Any = selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    wanted: Any = selective_scan_ref(**truth, delta_softplus=True, return_last_state=True)
    assert made[0].dtype == torch.float32 and made[1].shape == (B_, D_, N_) and made[1].is_complex() == kind.startswith("complex")
    come = [normal(*w.shape, seed=20 + i, dtype=torch.complex64 if w.is_complex() else torch.float32) for i, w in enumerate(wanted)]
    found = torch.autograd.grad(made, list(leaves.values()), come)
    right = torch.autograd.grad(wanted, list(true_leaves.values()), [wide(c) for c in come])
    for m, w in zip(made, wanted, strict=True):
        close(m, w)
    for name, f, r in zip(leaves, found, right, strict=True):
        close(f, r, GRADIENT, name)


def test_scan_without_what_may_be_left_out() -> None:
    inputs = {k: v for k, v in scan_inputs("real gg").items() if k in ("u", "delta", "A", "B", "C")}
    inputs["delta"] = inputs["delta"].abs()
    out: Any = selective_scan_fn(**inputs)
    wanted: Any = selective_scan_ref(**{k: wide(v) for k, v in inputs.items()})
    close(out, wanted)


def test_dtypes_are_as_given_under_autocast() -> None:
    """Half the networks built on Mamba call it with float32 tensors within autocast, to have float32 there."""
    inputs = scan_inputs("real gg")
    wanted: Any = selective_scan_fn(**inputs, delta_softplus=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out: Any = selective_scan_fn(**inputs, delta_softplus=True)
    assert out.dtype == torch.float32 and torch.equal(out, wanted)


def inner_inputs(kind: str = "real vv") -> dict[str, Any]:
    field, of = kind.split()
    dtype = torch.complex64 if field == "complex" else torch.float32
    parts, rows = N_ * (2 if field == "complex" else 1), of.count("v")
    A = -0.2 - normal(D_, N_, seed=3).abs()
    return {
        "xz": normal(B_, 2 * D_, L_, seed=1),
        "conv1d_weight": normal(D_, 1, 4, seed=2, scale=0.5),
        "conv1d_bias": normal(D_, seed=4),
        "x_proj_weight": normal(R_ + rows * parts, D_, seed=5, scale=0.5),
        "delta_proj_weight": normal(D_, R_, seed=6, scale=0.5),
        "out_proj_weight": normal(5, D_, seed=7),
        "out_proj_bias": normal(5, seed=8),
        "A": A + 1j * normal(D_, N_, seed=9) if field == "complex" else A,
        "B": None if of[0] == "v" else normal(D_, N_, seed=10, dtype=dtype),
        "C": None if of[1] == "v" else normal(D_, N_, seed=11, dtype=dtype),
        "D": normal(D_, seed=12),
        "delta_bias": normal(D_, seed=13),
        "B_proj_bias": normal(parts, seed=14) if of[0] == "v" else None,
        "C_proj_bias": normal(parts, seed=15) if of[1] == "v" else None,
    }


def loop(x: dict[str, Any]) -> Tensor:
    """The block from its definition, one product at a time, on selective_scan_ref; norms included."""
    u, z = x["xz"].chunk(2, dim=1)
    taps = x["conv1d_weight"][:, 0]
    seen = F.pad(u, (taps.shape[1] - 1, 0))
    u = F.silu(x["conv1d_bias"][:, None] + sum(taps[:, j, None] * seen[..., j : j + L_] for j in range(taps.shape[1])))
    rows = torch.einsum("rd,bdl->brl", x["x_proj_weight"], u)
    delta = torch.einsum("dr,brl->bdl", x["delta_proj_weight"], rows[:, :R_])
    complex_, n = x["A"].is_complex(), x["A"].shape[1]
    parts, rest, driven = n * (2 if complex_ else 1), rows[:, R_:], []

    def norm(t: Tensor, weight: Tensor | None) -> Tensor:
        return t if weight is None else t / (t.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight[:, None]

    for name in "BC":
        t = x[name]
        if t is None:
            t, rest = rest[:, :parts] + x[f"{name}_proj_bias"][:, None], rest[:, parts:]
            t = torch.complex(t[:, 0::2], t[:, 1::2])[:, None] if complex_ else norm(t, x.get(f"{name.lower()}_rms_weight"))
        driven.append(t)
    delta = norm(delta, x.get("dt_rms_weight"))
    y: Any = selective_scan_ref(u, delta, x["A"], driven[0], driven[1], x["D"], z, x["delta_bias"], delta_softplus=True)
    return torch.einsum("bdl,md->blm", y, x["out_proj_weight"]) + x["out_proj_bias"]


def doubles(x: dict[str, Any]) -> dict[str, Any]:
    return {k: None if v is None else wide(v) for k, v in x.items()}


def block_gradients(call: Callable[..., Tensor], inputs: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    given = {k: None if v is None else v.clone() for k, v in inputs.items()}
    leaves = leaves_of({k: v for k, v in given.items() if v is not None})
    out = call(**{**given, **leaves}, **options)
    return out, dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), normal(*out.shape, seed=30).to(out.dtype)), strict=True))


@pytest.mark.parametrize("kind", ["real vv", "complex vc"])
@pytest.mark.parametrize("checkpoint_lvl", [0, 1])
def test_inner(kind: str, checkpoint_lvl: int) -> None:
    inputs = inner_inputs(kind)
    out, found = block_gradients(mamba_inner_fn, inputs, checkpoint_lvl=checkpoint_lvl)
    wanted, right = block_gradients(lambda **x: loop(x), doubles(inputs))
    close(out, wanted)
    for name, gradient in found.items():
        close(gradient, right[name], GRADIENT, name)
    close(mamba_inner_ref(**inputs), wanted)


def test_inner_with_norms() -> None:
    """FalconMamba's: B, C and the step size are normalised after their projections."""
    inputs = inner_inputs()
    inputs |= {f"{k}_rms_weight": 1 + 0.3 * normal(size, seed=40) for k, size in (("b", N_), ("c", N_), ("dt", D_))}
    out, found = block_gradients(mamba_inner_fn, inputs)
    wanted, right = block_gradients(lambda **x: loop(x), doubles(inputs))
    close(out, wanted)
    for name, gradient in found.items():
        close(gradient, right[name], GRADIENT, name)


def test_second_derivatives_of_inner() -> None:
    """They go through the chain of functions, whether the backward recomputes or not."""
    inputs = inner_inputs()

    def second(level: int, asked: tuple[str, ...]) -> tuple[Tensor, ...]:
        leaves = {k: None if v is None else v.clone().requires_grad_() for k, v in inputs.items()}
        out = mamba_inner_fn(**leaves, checkpoint_lvl=level)
        wanted = [t for k, t in leaves.items() if t is not None and k in asked]
        first = torch.autograd.grad(out, wanted, normal(*out.shape, seed=31), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    for found, wanted in zip(second(1, ("xz", "A", "x_proj_weight")), second(0, ("xz", "A", "x_proj_weight")), strict=True):
        assert wanted.abs().max() > 0
        close(found, wanted, GRADIENT)


def test_inner_keeps_less_at_level_1() -> None:
    inputs = inner_inputs()
    leaves_of({k: v for k, v in inputs.items() if v is not None})

    def kept(level: int) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            mamba_inner_fn(**inputs, checkpoint_lvl=level)
        return sum(sizes.values())

    given = sum(v.untyped_storage().nbytes() for v in inputs.values() if v is not None)
    assert kept(1) <= given + 4 * B_ * D_ * L_ < kept(0)  # the arguments, and what the output projection reads


def test_inner_under_autocast() -> None:
    inputs = inner_inputs()
    wanted, right = block_gradients(lambda **x: loop(x), doubles(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, found = block_gradients(mamba_inner_fn, inputs)
    assert out.dtype == torch.bfloat16
    bars = {torch.bfloat16: 2e-2, torch.float32: 5e-2}
    close(out, wanted, bars)
    for name in ("xz", "A", "x_proj_weight", "D"):
        close(found[name], right[name], bars, name)


@pytest.mark.parametrize("checkpoint_lvl", [0, 1])
def test_inner_compiles_whole(checkpoint_lvl: int) -> None:
    inputs = inner_inputs()
    out, found = block_gradients(torch.compile(mamba_inner_fn, fullgraph=True, backend="aot_eager"), inputs, checkpoint_lvl=checkpoint_lvl)
    wanted, right = block_gradients(mamba_inner_fn, inputs)
    close(out, wanted)
    for name, gradient in found.items():
        close(gradient, right[name], GRADIENT, name)


def test_scan_compiles_whole() -> None:
    inputs = scan_inputs("real gg")
    call = torch.compile(selective_scan_fn, fullgraph=True, backend="aot_eager")
    made, wanted = (f(**inputs, delta_softplus=True, return_last_state=True) for f in (call, selective_scan_fn))
    for m, w in zip(made, wanted, strict=True):
        close(m, w)


def test_refusals_name_what_is_wrong() -> None:
    inputs = inner_inputs()
    for name, shape in (("xz", (B_, 2 * D_ + 1, L_)), ("x_proj_weight", (R_ + N_, D_)), ("A", (D_ + 1, N_))):
        with pytest.raises(ArgumentError, match=f"mamba_inner_fn: argument '{name}'"):
            mamba_inner_fn(**{**inputs, name: torch.zeros(shape)})
    with pytest.raises(ArgumentError, match="'checkpoint_lvl' is 2"):
        mamba_inner_fn(**inputs, checkpoint_lvl=2)
    scan = scan_inputs("real gg")
    with pytest.raises(ArgumentError, match="'delta'"):
        selective_scan_fn(**{**scan, "delta": scan["delta"][:, :, 1:]})


def test_signatures_are_mamba_ssms() -> None:
    """Callers pass by position and filter keywords by name: both must be where they are in mamba_ssm 2.3."""
    scan = "u delta A B C D z delta_bias delta_softplus return_last_state"
    inner = (
        "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight out_proj_weight out_proj_bias A B C D delta_bias "
        "B_proj_bias C_proj_bias delta_softplus"
    )
    later = " checkpoint_lvl b_rms_weight c_rms_weight dt_rms_weight b_c_dt_rms_eps"
    calls = {selective_scan_fn: scan, selective_scan_ref: scan, mamba_inner_fn: inner + later, mamba_inner_ref: inner}
    for function, names in calls.items():
        assert list(inspect.signature(function).parameters) == names.split()
