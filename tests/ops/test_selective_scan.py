"""selective_scan on the CPU's kernels, every way to call it, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from scanc.ops import selective_scan
from tests.checks import GRADIENT, close, cotangents, gradients, holds, leaves_of, normal, relative, wide


def sample(
    b: int = 2, d: int = 24, l: int = 63, n: int = 3, g: int = 2, dtype: torch.dtype = torch.float32, **change: Any
) -> dict[str, Any]:
    """Every input but seq_idx; ``change`` replaces some (None leaves one out)."""
    made: dict[str, Any] = {
        "u": normal(b, d, l, seed=0, dtype=dtype),
        "delta": normal(b, d, l, seed=1, dtype=dtype, scale=0.5),
        "A": -torch.exp(normal(d, n, seed=2, scale=0.7)),
        "B": normal(b, g, n, l, seed=3, dtype=dtype),
        "C": normal(b, g, n, l, seed=4, dtype=dtype),
        "D": normal(d, seed=5),
        "z": normal(b, d, l, seed=6, dtype=dtype),
        "delta_bias": normal(d, seed=7) - 2.0,
        "initial_state": normal(b, d, n, seed=8),
        "delta_softplus": True,
    }
    return made | change


def bare(**sizes: Any) -> dict[str, Any]:
    """Only what is required; the delta is positive, as a softplus makes it."""
    x = sample(**sizes, D=None, z=None, delta_bias=None, initial_state=None, delta_softplus=False)
    return x | {"delta": x["delta"].abs()}


# -- shapes, one kernel for them all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "d", "l", "g"), [(2, 24, 63, 2), (1, 1, 1, 1), (3, 30, 1, 3), (1, 17, 1000, 1), (2, 6, 2049, 6), (1, 50, 64, 2), (2, 33, 65, 1)]
)
def test_every_result_and_gradient_of_any_shape(b: int, d: int, l: int, g: int) -> None:
    holds(selective_scan, sample(b, d, l, g=g))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 24, 64, 100, 128, 256])
def test_state_sizes(n: int) -> None:
    holds(selective_scan, sample(b=1, d=18, l=35, n=n))


@pytest.mark.parametrize(("n", "dtype"), [(1, torch.bfloat16), (100, torch.float16)], ids=str)
def test_state_sizes_of_half_precision(n: int, dtype: torch.dtype) -> None:
    holds(selective_scan, sample(b=1, d=18, l=35, n=n, dtype=dtype))


@pytest.mark.parametrize("d", [1, 3, 33, 1000])
def test_widths(d: int) -> None:
    holds(selective_scan, sample(b=2, d=d, l=37, g=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_a_matter_of_storage(dtype: torch.dtype) -> None:
    y, state = holds(selective_scan, sample(l=100, n=16, dtype=dtype))
    assert y.dtype == dtype and state.dtype == torch.float32


def test_required_inputs_alone() -> None:
    y, state = holds(selective_scan, bare(), heard=(0,))
    assert relative(y, torch.zeros_like(y)) > 1  # the comparison is of something


# -- what else a call can say ---------------------------------------------------------------------------------------------------


def segments(b: int, l: int, seed: int = 9) -> Tensor:
    """Sequence indices that change now and then."""
    return (torch.rand(b, l, generator=torch.Generator().manual_seed(seed)) < 0.1).cumsum(-1).to(torch.int32)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_sequence_indices_cut_the_past_off(reverse: bool) -> None:
    x = sample(l=130) | {"seq_idx": segments(2, 130), "reverse": reverse}
    y, _ = holds(selective_scan, x)
    uncut = selective_scan(**x | {"seq_idx": torch.zeros_like(x["seq_idx"])})[0]
    assert relative(uncut, y) > 0.05


def test_packed_sequences_are_those_sequences() -> None:
    lengths = [5, 64, 1, 30]
    x = sample(b=1, l=sum(lengths), initial_state=None)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    packed, _ = selective_scan(**x, cu_seqlens=ends)
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        alone = {k: v[..., start:end] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
        close(packed[..., start:end], selective_scan(**alone)[0], {torch.float32: 1e-6})


def test_lengths_never_leave_the_device() -> None:
    """cu_seqlens is known to no one but the kernel: traced without its numbers, the program serves any others."""
    x = sample(b=1, l=100, initial_state=None)

    def run(u: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = selective_scan(**x | {"u": u}, cu_seqlens=ends)
        return y, torch.autograd.grad(y.square().sum(), u)[0]

    u = x["u"].requires_grad_()
    ends, others = torch.tensor([0, 5, 5, 60, 100]), torch.tensor([0, 31, 32, 98, 100])
    traced = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(u, ends)
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    assert "scanc.selective_scan_backward.default" in called and not any("local_scalar" in c or "nonzero" in c for c in called)
    for found, wanted, other in zip(traced(u, others), run(u, others), run(u, ends), strict=True):
        assert torch.equal(found, wanted) and relative(other, wanted) > 0.05


def test_reverse_is_the_flipped_sequence() -> None:
    x = sample()
    flipped = {k: v.flip(-1) if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
    y, state = holds(selective_scan, x | {"reverse": True, "seq_idx": None}, backward=False)
    back, same = selective_scan(**flipped)
    close(y, back.flip(-1), {torch.float32: 1e-6})
    close(state, same, {torch.float32: 1e-6})


def test_a_batch_without_groups() -> None:
    x = sample(g=1)
    y, state = selective_scan(**x)
    flat = selective_scan(**x | {"B": x["B"][:, 0], "C": x["C"][:, 0]})
    assert torch.equal(flat[0], y) and torch.equal(flat[1], state)


@pytest.mark.parametrize("which", ["B", "C", "BC"])
def test_constant_input_and_readout(which: str) -> None:
    x = bare()
    holds(selective_scan, x | {k: normal(24, 3, seed=10 + i) for i, k in enumerate(which)})


def complex_sample(constant: bool, **change: Any) -> dict[str, Any]:
    shape = (24, 3) if constant else (2, 2, 3, 63)
    return sample(
        **{
            "A": torch.complex(-torch.exp(normal(24, 3, seed=2)), normal(24, 3, seed=20, scale=3.0)),
            "B": normal(*shape, seed=21, dtype=torch.complex64),
            "C": normal(*shape, seed=22, dtype=torch.complex64),
            "initial_state": normal(2, 24, 3, seed=23, dtype=torch.complex64),
        }
        | change
    )


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_complex_transitions(constant: bool) -> None:
    y, state = holds(selective_scan, complex_sample(constant))
    assert y.dtype == torch.float32 and state.dtype == torch.complex64


def test_conjugates_that_are_yet_to_be_made() -> None:
    """torch's conj() is a view that says how it is to be read; so is what autograd gives for it, and the negative of an imaginary part."""
    x = complex_sample(False)
    u, weight = x["u"].requires_grad_(), normal(2, 24, 3, seed=30, dtype=torch.complex64)
    for made in (lambda y, h: (h.conj() * weight).real.sum() + y.sum(), lambda y, h: (h.conj().imag * weight.real).sum()):
        found, right = (torch.autograd.grad(made(*op(**x)), u)[0] for op in (selective_scan, selective_scan.reference))
        close(found, right, GRADIENT)
    lazy = {k: x[k].conj() for k in ("A", "B", "C")}
    close(selective_scan(**(x | lazy))[0], selective_scan(**(x | {k: v.resolve_conj() for k, v in lazy.items()}))[0])


def test_complex_values_as_interleaved_reals() -> None:
    x = complex_sample(False)
    real = {k: torch.view_as_real(x[k]).flatten(-2).requires_grad_() for k in ("B", "C")}
    whole = {k: x[k].requires_grad_() for k in ("B", "C")}
    y, _ = selective_scan(**x | real)
    z, _ = selective_scan(**x | whole)
    assert torch.equal(y, z)
    come = normal(*y.shape, seed=24)
    found = torch.autograd.grad(y, list(real.values()), come)
    wanted = torch.autograd.grad(z, list(whole.values()), come)
    for f, w in zip(found, wanted, strict=True):
        close(f, torch.view_as_real(w).flatten(-2), {torch.float32: 1e-6})


# -- memory layouts -------------------------------------------------------------------------------------------------------------


def test_channels_last_and_expanded_tensors_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """(b l d) storage seen as (b d l), B shared by the batch, every second step of a longer tensor: same result, and no copy made."""
    x = sample(l=70)
    plain = selective_scan(**x)
    odd = dict(x)
    for k in ("u", "delta", "z"):
        odd[k] = x[k].transpose(1, 2).contiguous().transpose(1, 2)
    odd["C"] = torch.stack([x["C"], torch.full_like(x["C"], float("nan"))], -1).flatten(-2)[..., ::2]
    odd["A"] = x["A"].t().contiguous().t()
    seen: list[str] = []
    contiguous = Tensor.contiguous

    def watched(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not t.is_contiguous():
            seen.append(str(tuple(t.shape)))
        return contiguous(t, *args, **kwargs)

    monkeypatch.setattr(Tensor, "contiguous", watched)
    for found, wanted in zip(selective_scan(**odd), plain, strict=True):
        assert torch.equal(found, wanted)
    assert not seen
    shared = x["B"][:1].expand(2, -1, -1, -1)
    y, _ = holds(selective_scan, odd | {"B": shared})
    assert torch.equal(y, selective_scan(**x | {"B": shared.clone()})[0])


def in_order(x: Tensor, order: str) -> Tensor:
    """The same values, the axes (b d l) lying in memory in the order named."""
    places = ["bdl".index(a) for a in order]
    return x.permute(places).contiguous().permute([places.index(i) for i in range(3)])


LAYOUTS: dict[str, Any] = {
    "b l d": lambda x: in_order(x, "bld"),
    "d b l": lambda x: in_order(x, "dbl"),
    "l d b": lambda x: in_order(x, "ldb"),
    "half of a wider tensor": lambda x: torch.cat([torch.full_like(x, float("nan")), x], 1).chunk(2, dim=1)[1],
    "half of a wider (b l d)": lambda x: torch.cat([x, torch.full_like(x, float("nan"))], 1).transpose(1, 2).contiguous().chunk(2, -1)[0]
    .transpose(1, 2),
    "every second of the batch and of the channels": lambda x: x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, 1::2],
    "one batch, repeated": lambda x: x[:1].expand_as(x),
    "one channel, repeated": lambda x: x[:, 4:5].expand_as(x),
    "one number, repeated": lambda x: x[1:, 4:5, 7:8].expand_as(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_any_dtype(layout: str, dtype: torch.dtype) -> None:
    """Inputs over channels and time, results and gradients alike: what is read is where the strides say, and nothing beside it."""
    x = sample(l=70 if dtype == torch.float32 else 100, n=3 if dtype == torch.float32 else 16, dtype=dtype)
    holds(selective_scan, x | {k: LAYOUTS[layout](x[k]) for k in ("u", "delta", "z")})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_lie_in_memory_as_their_inputs(layout: str) -> None:
    """In the same order, without gaps and repetitions; results are contiguous."""
    x = sample(l=70) | {"A": normal(3, 24, seed=2).exp().neg().t(), "C": normal(70, 2, 3, 2, seed=4).permute(3, 1, 2, 0)}
    leaves = leaves_of({k: LAYOUTS[layout](v) if k in ("u", "delta", "z") else v for k, v in x.items() if isinstance(v, Tensor)})
    y, last = selective_scan(**x | leaves)
    assert y.is_contiguous() and last.is_contiguous()
    for name, gradient in gradients((y, last), cotangents((y, last)), leaves).items():
        assert gradient.stride() == torch.empty_like(leaves[name]).stride(), name


@pytest.mark.parametrize("mixed", ["parameters", "groups", "states", "all"])
def test_strides_of_everything_else(mixed: str) -> None:
    """Parameters that are columns of a matrix, B and C with states or groups innermost, a state shared by the batch."""
    x, odd = sample(l=70), dict[str, Tensor]()
    if mixed in ("parameters", "all"):
        odd |= {"A": x["A"].t().contiguous().t(), "D": torch.stack([x["D"]] * 3, 1)[:, 1], "delta_bias": x["delta_bias"][:1].expand(24)}
    if mixed in ("groups", "all"):
        odd["B"] = x["B"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        odd["C"] = x["C"].permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    if mixed in ("states", "all"):
        odd |= {"initial_state": x["initial_state"].permute(2, 0, 1).contiguous().permute(1, 2, 0)[:1].expand(2, -1, -1)}
    if mixed == "all":
        odd |= {"u": in_order(x["u"], "bld"), "z": in_order(x["z"], "ldb")}
    holds(selective_scan, x | odd)


# -- the range of numbers ---------------------------------------------------------------------------------------------------------


def test_transitions_from_none_to_all_over_long_sequences() -> None:
    """dt A from -1e4 to -1e-6 over 1e5 steps: finite, and right to what float32 can say of e^-1e-6, a number so near 1."""
    l = 100_000
    x = bare(b=1, d=16, l=l, g=1)
    x["A"] = -torch.logspace(-6, 4, 16)[:, None].expand(16, 3).contiguous()
    x["delta"] = torch.rand(1, 16, l, generator=torch.Generator().manual_seed(3)) + 0.5
    results = selective_scan(**x)
    assert all(r.isfinite().all() for r in results)
    truth = selective_scan.reference(**{k: wide(v) if isinstance(v, Tensor) else v for k, v in x.items()})
    fast = x["A"][:, 0] < -1e-3
    close(results[0][:, fast], truth[0][:, fast])
    for found, wanted in zip(results, truth, strict=True):
        close(found, wanted, {torch.float32: 1e-4})
    leaves = [x[k].requires_grad_() for k in ("u", "delta", "A", "B", "C")]
    y, _ = selective_scan(**x)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y, leaves, torch.ones_like(y)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_stays_in_its_row_and_its_future(value: float) -> None:
    x = sample(b=3, d=20, l=70)
    x["u"][1, 5, 40] = value
    y, state = selective_scan(**x)
    bad = ~y.isfinite()
    assert bad[1, 5, 40:].all() and int(bad.sum()) == 30
    assert not state[1, 5].isfinite().any() and int((~state.isfinite()).sum()) == 3


def test_a_bad_row_keeps_to_itself_in_the_backward() -> None:
    x = sample(b=3, d=20, l=70)
    x["u"][1, 5, 40] = float("nan")
    u, z = x["u"].requires_grad_(), x["z"].requires_grad_()
    y, _ = selective_scan(**x)
    d_u, d_z = torch.autograd.grad(y, [u, z], torch.ones_like(y))
    for gradient in (d_u, d_z):
        bad = gradient.isnan().any(-1)
        assert not bad[0].any() and not bad[2].any() and int(bad[1].sum()) <= 1
    assert d_z[1, 5].isnan().any()


# -- pieces make the whole --------------------------------------------------------------------------------------------------------


EXACT = {torch.float32: 1e-6}
OVER_TIME = ("u", "delta", "B", "C", "z", "seq_idx")


def in_pieces(x: dict[str, Any], cuts: list[int]) -> tuple[Tensor, Tensor]:
    """y and the last state of one call for each piece between the cuts, each starting from the state of the one before."""
    carried, parts = x["initial_state"], []
    edges = [0, *cuts, x["u"].shape[-1]]
    for start, end in zip(edges, edges[1:], strict=False):
        if "seq_idx" in x and 0 < start < x["u"].shape[-1]:  # a sequence that begins here knows nothing of the one before
            carried = carried * (x["seq_idx"][:, start - 1] == x["seq_idx"][:, start])[:, None, None]
        piece = {k: v[..., start:end] if k in OVER_TIME and isinstance(v, Tensor) else v for k, v in x.items()}
        part, carried = selective_scan(**piece | {"initial_state": carried})
        parts.append(part)
    return torch.cat(parts, -1), carried


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 70), max_size=6).map(sorted), packed=st.booleans())
def test_any_pieces_that_hand_on_the_state_are_one_call(cuts: list[int], packed: bool) -> None:
    """Results, and gradients through the states handed on; pieces of one step, of none, and cut where a sequence begins, too."""
    x = sample(l=70) | ({"seq_idx": segments(2, 70)} if packed else {})
    leaves = leaves_of({k: v for k, v in x.items() if isinstance(v, Tensor)})
    whole, parts = selective_scan(**x), in_pieces(x, cuts)
    for part, one in zip(parts, whole, strict=True):
        close(part, one, EXACT)
    found, wanted = (gradients(results, cotangents(whole), leaves) for results in (parts, whole))
    for name, gradient in found.items():
        close(gradient, wanted[name], EXACT, f"d_{name}")


def test_pieces_of_half_precision() -> None:
    """The state is handed on in full precision: where a sequence is cut rounds nothing."""
    x = sample(l=100, n=16, dtype=torch.bfloat16)
    for found, wanted in zip(in_pieces(x, [1, 33, 64]), selective_scan(**x), strict=True):
        close(found, wanted, EXACT | {torch.bfloat16: 1e-4})


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "complex"])
def test_steps_are_the_scan(kind: str) -> None:
    x = complex_sample(False) if kind == "complex" else sample(l=20, n=16 if kind == "bfloat16" else 3, dtype=getattr(torch, kind))
    y, last = selective_scan(**x)
    options = {"delta_softplus": x["delta_softplus"]}
    state = x["initial_state"].clone()
    where = state.data_ptr()
    over_time = ("u", "delta", "B", "C", "z")
    steps = []
    for t in range(y.shape[-1]):
        at_t = {k: v[..., t] if k in over_time else v for k, v in x.items() if isinstance(v, Tensor) and k != "initial_state"}
        steps.append(selective_scan.step(state, **at_t, **options))
    close(torch.stack(steps, -1), y, {torch.float32: 1e-6, torch.bfloat16: 4e-3})
    close(state, last, {torch.float32: 1e-6, torch.complex64: 1e-6})
    assert state.data_ptr() == where
