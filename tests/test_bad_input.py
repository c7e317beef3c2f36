"""What cannot be done is refused by name, before a kernel runs; what is merely empty has a defined result."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import scanc.dsl as sc
from scanc.errors import ArgumentError, ScancError, TargetError, TraceError, UnsupportedForm
from scanc.op import REGISTRY
from scanc.ops import linear_recurrence, selective_scan, ssd
from scanc.target import Target
from tests.checks import holds, normal
from tests.ops.test_selective_scan import sample
from tests.ops.test_ssd import sample as ssd_sample

# -- tensors that do not fit ------------------------------------------------------------------------------------------------------


def refuse(change: dict[str, Any], argument: str, *words: str) -> None:
    """selective_scan of the sample with ``change`` raises an ArgumentError about ``argument`` that says all ``words``."""
    with pytest.raises(ArgumentError) as found:
        selective_scan(**sample() | change)
    assert found.value.fields["argument"] == argument
    for word in ("selective_scan", argument, *words):
        assert word in str(found.value), f"{word!r} is not in: {found.value}"


def test_wrong_rank() -> None:
    refuse({"u": normal(24, 63, seed=0)}, "u", "rank 2", "(24, 63)", "b d l")
    refuse({"A": normal(24, seed=0)}, "A", "rank 1", "d n")
    refuse({"initial_state": normal(24, 3, seed=0)}, "initial_state", "rank 2", "b d n")


def test_axes_that_disagree() -> None:
    refuse({"delta": normal(2, 24, 64, seed=0)}, "delta", "(2, 24, 64)", "axis l is 63 in 'u'")
    refuse({"A": normal(25, 3, seed=0)}, "A", "axis d is 24 in 'u'")
    refuse({"C": normal(2, 2, 4, 63, seed=0)}, "C", "axis n is 3 in 'A'")
    refuse({"initial_state": normal(1, 24, 3, seed=0)}, "initial_state", "axis b is 2 in 'u'")


def test_wrong_dtypes() -> None:
    refuse({"u": torch.ones(2, 24, 63, dtype=torch.int32)}, "u", "torch.int32", "real", "Cast")
    refuse({"u": torch.ones(2, 24, 63, dtype=torch.complex64)}, "u", "torch.complex64")
    refuse({"seq_idx": torch.zeros(2, 63)}, "seq_idx", "torch.float32", "int")
    refuse({"A": torch.ones(24, 3, dtype=torch.bool)}, "A", "torch.bool")


def test_a_dtype_that_no_kernel_reads() -> None:
    refuse({"u": sample()["u"].to(torch.float8_e4m3fn)}, "u", "float8_e4m3fn", "bfloat16")


def test_groups_must_divide() -> None:
    refuse({k: normal(2, 5, 3, 63, seed=0) for k in ("B", "C")}, "B", "5 groups", "d = 24")
    with pytest.raises(ArgumentError, match="5 groups.*h = 4"):
        ssd(**ssd_sample() | {k: normal(2, 63, 5, 3, seed=0) for k in ("B", "C")})


def test_one_device() -> None:
    refuse({"A": sample()["A"].to("meta")}, "A", "on meta", "'u' is on cpu")
    refuse({"u": sample()["u"].to("meta")}, "delta", "on cpu", "'u' is on meta")


def test_missing_and_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="delta|positional"):
        selective_scan(sample()["u"])
    with pytest.raises(TypeError, match="chunk"):
        selective_scan(**sample(), chunk=64)
    with pytest.raises(ArgumentError, match="chunk.*delta_softplus"):
        selective_scan.graph(chunk=64)
    with pytest.raises(ArgumentError, match="not an optional input"):
        selective_scan.graph(without=("u",))


def test_packed_sequences_that_contradict() -> None:
    ends = torch.tensor([0, 30, 63], dtype=torch.int32)
    refuse({"cu_seqlens": ends}, "cu_seqlens", "batch of 2", "batch of 1")
    refuse({"cu_seqlens": ends.float()}, "cu_seqlens", "float32", "integers")
    refuse({"cu_seqlens": ends[None]}, "cu_seqlens", "(1, 3)", "(nseq + 1)")
    refuse({"cu_seqlens": ends.to("meta")}, "cu_seqlens", "on meta", "'u' is on cpu")
    with pytest.raises(ArgumentError, match="cu_seqlens.*seq_idx"):
        selective_scan(**sample(b=1), cu_seqlens=ends, seq_idx=torch.zeros(1, 63, dtype=torch.int32))


def test_interleaved_parts_come_in_pairs() -> None:
    x = sample() | {"A": sample()["A"].to(torch.complex64), "initial_state": None}
    with pytest.raises(ArgumentError, match="argument 'B'.*2 l interleaved"):
        selective_scan(**x)


def test_a_step_has_no_time() -> None:
    x = sample()
    state = x.pop("initial_state")
    with pytest.raises(ArgumentError, match=re.escape("selective_scan.step: argument 'u'")) as found:
        selective_scan.step(state, **x)
    assert "no time axis" in str(found.value)


@pytest.mark.parametrize("options", [{"reverse": True}, {"seq_idx": torch.zeros(2, dtype=torch.int32)}], ids=["reverse", "seq_idx"])
def test_what_has_no_step_says_why(options: dict[str, Any]) -> None:
    x = sample()
    state = x.pop("initial_state")
    now = {k: v[..., 0] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
    with pytest.raises(UnsupportedForm, match="step"):
        selective_scan.step(state, **now, **options)


def test_integer_inputs_have_no_gradient() -> None:
    x = sample() | {"seq_idx": torch.zeros(2, 63, dtype=torch.int32), "u": sample()["u"].requires_grad_()}
    y, _ = selective_scan(**x)
    y.sum().backward()
    assert x["u"].grad is not None and x["seq_idx"].grad is None


# -- empty and short ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False], ids=["state given", "from zero"])
def test_no_steps_leave_the_state_as_it_was(given: bool) -> None:
    x = sample(l=0) if given else sample(l=0, initial_state=None)
    leaves = {k: v.requires_grad_() for k, v in x.items() if isinstance(v, Tensor)}
    y, state = selective_scan(**x)
    assert y.shape == (2, 24, 0) and state.shape == (2, 24, 3) and state.dtype == torch.float32
    assert torch.equal(state, x["initial_state"] if given else torch.zeros(2, 24, 3))
    if given:
        come = torch.ones_like(state)
        gradients = dict(zip(leaves, torch.autograd.grad([y, state], list(leaves.values()), [torch.ones_like(y), come]), strict=True))
        assert torch.equal(gradients["initial_state"], come)
        assert all(not g.any() and g.shape == leaves[k].shape for k, g in gradients.items() if k != "initial_state")


def test_an_empty_batch() -> None:
    x = sample(b=0)
    leaves = {k: v.requires_grad_() for k, v in x.items() if isinstance(v, Tensor)}
    y, state = selective_scan(**x)
    assert y.shape == (0, 24, 63) and state.shape == (0, 24, 3)
    for k, gradient in zip(leaves, torch.autograd.grad(y.sum() + state.sum(), list(leaves.values())), strict=True):
        assert gradient.shape == leaves[k].shape and not gradient.any()
    now = {k: v.detach()[..., 0] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items() if k != "initial_state"}
    assert selective_scan.step(x["initial_state"].detach(), **now).shape == (0, 24)


def test_no_channels() -> None:
    h, last = linear_recurrence(torch.ones(2, 0, 5), torch.ones(2, 0, 5))
    assert h.shape == (2, 0, 5) and last.shape == (2, 0)


def test_one_step() -> None:
    holds(selective_scan, sample(l=1))


# -- programs that are wrong ------------------------------------------------------------------------------------------------------------


def trace(body: Any, *words: str) -> TraceError:
    """An op with this body is refused when it is defined; the message names op, file and line, and says all ``words``."""
    with pytest.raises(TraceError) as found:

        @sc.op
        def wrong(x: Float[Tensor, "b d l"], w: Float[Tensor, "d"]) -> Float[Tensor, "b d l"]:
            return body(x, w)

    for word in ("op 'wrong'", "test_bad_input.py", *words):
        assert word in str(found.value), f"{word!r} is not in: {found.value}"
    assert "wrong" not in REGISTRY
    return found.value


def test_a_nonlinear_recurrence() -> None:
    error = trace(lambda x, w: sc.scan(lambda h: sc.tanh(h), x, axis="l"), "linear", "h_t = a_t h_{t-1} + b_t", "out of scope")
    assert "sc.scan(lambda h" in str(error)  # the line itself


def test_a_recurrence_on_itself() -> None:
    def cyclic(x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
        h = 0.5 * sc.shift(h, "l") + x  # noqa: F821
        return h

    with pytest.raises(TraceError, match="used before it is defined.*sc.scan"):
        sc.op(cyclic)


def test_values_are_not_numbers_yet() -> None:
    trace(lambda x, w: x if x > 0 else -x, "no truth value", "sc.where")
    trace(lambda x, w: x[0], "cannot be indexed", "sc.last")
    trace(lambda x, w: next(iter(x)), "cannot be iterated")
    trace(lambda x, w: x**w, "power", "exp(p * log(x))")
    trace(lambda x, w: x + "1", "str cannot be used as a value")
    trace(lambda x, w: x + None, "absent optional input", "is not None")
    trace(lambda x, w: x + torch.ones(3), "Tensor cannot be used as a value")


def test_axes_that_are_not_there() -> None:
    trace(lambda x, w: sc.scan(w, x, axis="t"), "scan along 't'")
    trace(lambda x, w: x * sc.sum(w, "l"), "sum over 'l'", "(d)")
    trace(lambda x, w: x * sc.shift(w, "l"), "shift along 'l'")
    trace(lambda x, w: x * sc.last(w, "l"), "last along 'l'")
    trace(lambda x, w: x * sc.index("q"), "index of 'q'")
    trace(lambda x, w: x * sc.size("q"), "size of 'q'")
    trace(lambda x, w: sc.scan(0.5, x, axis="l", initial=x), "initial state has the time axis")


def test_results_that_are_not_as_annotated() -> None:
    trace(lambda x, w: (x, w), "returns 2 values", "1")
    trace(lambda x, w: sc.conv(x, w, axis="l", tap="q"), "conv")
    trace(lambda x, w: sc.discretize(w, w, x, method="magic")[0], "no method 'magic'", "zoh")
    trace(lambda x, w: None, "absent")

    def extra(x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d"]:
        return x

    with pytest.raises(TraceError, match=re.escape("result 0 has axes (b d l), but the annotation says (b d)")):
        sc.op(extra)


def test_signatures_that_do_not_say_enough() -> None:
    def no_shape(x: Tensor) -> Float[Tensor, "b"]:
        return x

    def no_result(x: Float[Tensor, "b"]):  # type: ignore[no-untyped-def]
        return x

    def no_default(x: Float[Tensor, "b"], *, fast: bool) -> Float[Tensor, "b"]:
        return x

    def unknown(x: Flote[Tensor, "b"]) -> Float[Tensor, "b"]:  # type: ignore[name-defined]
        return x

    def gradient(x: Float[Tensor, "b"], d_x: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return x * d_x

    why = {
        gradient: "the gradient of 'x'",
        no_shape: "argument 'x' has no shape",
        no_result: "return annotation",
        no_default: "option 'fast'",
        unknown: "Flote",
    }
    for function, words in why.items():
        with pytest.raises(TraceError, match=words):
            sc.op(function)


def test_the_language_outside_an_op() -> None:
    with pytest.raises(TraceError, match="inside a function decorated with @sc.op"):
        sc.exp(1.0)


# -- targets ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tpu:v5:triton", "cuda:sm_90:cpp", "cuda:90:triton", "cpu:native", "cpu:native:triton", ""])
def test_unknown_targets(name: str) -> None:
    with pytest.raises(TargetError, match="cuda:sm_90:triton") as found:
        Target.parse(name)
    assert f"'{name}'" in str(found.value) and isinstance(found.value, ScancError)
