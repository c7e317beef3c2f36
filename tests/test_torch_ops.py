"""The torch side of every op: schema and fakes, compile, export, autocast, derivatives, threads, memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from jaxtyping import Float
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import scanc.dsl as sc
from scanc.errors import ArgumentError
from scanc.op import Op
from scanc.ops import linear_recurrence, selective_scan, ssd
from tests.checks import close, normal, relative, several, wide
from tests.ops.test_linear_recurrence import sample as linear_sample
from tests.ops.test_selective_scan import sample
from tests.ops.test_ssd import sample as ssd_sample
from tests.user_ops import INPUTS, both_ways, diagonal, gated_attention, min_gru

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call_of(op: Op, inputs: dict[str, Any]) -> Call:
    """(positional, keyword) as the torch op's schema wants them."""
    names = [a.name for a in op.arguments]
    return tuple(inputs.get(n) for n in names), {k: v for k, v in inputs.items() if k not in names}


def leafy(inputs: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The inputs with every tensor of numbers a leaf that wants a gradient, in ``dtype`` where one is given."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach().clone().to(dtype or t.dtype).requires_grad_() if t.is_floating_point() or t.is_complex() else t

    return {k: leaf(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def wanted(inputs: dict[str, Any]) -> list[Tensor]:
    return [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]


# -- what torch checks by itself ----------------------------------------------------------------------------------------------------

OPS = [(selective_scan, sample(l=5, d=6)), (ssd, ssd_sample(l=5)), (linear_recurrence, linear_sample(l=5)), (diagonal, INPUTS[diagonal])]


@pytest.mark.parametrize(("op", "inputs"), OPS, ids=lambda x: x.name if isinstance(x, Op) else "")
def test_opcheck_of_the_torch_ops(op: Op, inputs: dict[str, Any]) -> None:
    """Schema, fake kernel, autograd registration and AOT dispatch of forward, backward and step."""
    if op is diagonal:
        inputs = {k: v[..., :5] if k == "u" else v for k, v in inputs.items()}
    args, options = call_of(op, leafy(inputs))
    namespace = torch.ops.scanc
    torch.library.opcheck(getattr(namespace, op.name).default, args, options)
    come = tuple(torch.randn_like(r) for r in several(op(**inputs)))
    needs = [a is not None for a in args]
    torch.library.opcheck(getattr(namespace, op.name + "_backward").default, (*come, *args, needs, [], 0), options)
    timed = {a.name: a.alternatives[0].axes.index("l") for a in op.arguments if "l" in a.alternatives[0].axes}
    state = next(n for n in inputs if n.startswith("initial_state"))
    now = {k: v.select(timed[k], 0) if k in timed else v for k, v in inputs.items()}
    rest = [now.get(a.name) for a in op.arguments if a.name != state]
    torch.library.opcheck(getattr(namespace, op.name + "_step").default, (now[state].clone(), *rest), options)


# -- torch.compile and export -------------------------------------------------------------------------------------------------------


def counted(function: Callable[..., Any], **options: Any) -> tuple[Callable[..., Any], torch._dynamo.testing.CompileCounterWithBackend]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no state"])
def test_compiled_once_for_every_length_and_batch(with_state: bool) -> None:
    def loss(x: dict[str, Any]) -> Tensor:
        y, last = selective_scan(**x)
        return (y.sin().sum() + last.sum()) if with_state else y.sin().sum()

    compiled, counter = counted(loss, dynamic=True)
    for b, l in ((4, 63), (4, 64), (3, 100), (7, 1000)):  # no two axes of one size: torch takes equal sizes for one
        x = leafy(sample(b, l=l) if with_state else sample(b, l=l, initial_state=None))
        found, right = torch.autograd.grad(compiled(x), wanted(x)), torch.autograd.grad(loss(x), wanted(x))
        assert all(torch.equal(f, r) for f, r in zip(found, right, strict=True))
        assert counter.frame_count == 1


@pytest.mark.parametrize("op", [min_gru, gated_attention, diagonal, both_ways], ids=lambda op: op.name)
def test_users_ops_compile_whole(op: Op) -> None:
    x = leafy(INPUTS[op])
    compiled, counter = counted(lambda x: several(op(**x))[0].sum())
    found, right = torch.autograd.grad(compiled(x), wanted(x)), torch.autograd.grad(several(op(**x))[0].sum(), wanted(x))
    assert all(torch.equal(f, r) for f, r in zip(found, right, strict=True)) and counter.frame_count == 1


def test_a_schedule_that_leaves_no_checkpoints_says_so() -> None:
    with pytest.raises(ArgumentError, match=r"min_gru_training.*every.*16"):
        torch.ops.scanc.min_gru_training(*call_of(min_gru, INPUTS[min_gru])[0], 16)


def test_a_compiled_step_writes_the_state() -> None:
    """Through inductor: the state is an argument that the op overwrites."""
    x = sample(l=4)
    start = x.pop("initial_state")
    torch._dynamo.reset()
    compiled = torch.compile(lambda state, **now: 2.0 * selective_scan.step(state, **now), fullgraph=True)
    left, right = start.clone(), start.clone()
    for t in range(4):
        now = {k: v[..., t] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
        assert torch.equal(compiled(left, **now), 2.0 * selective_scan.step(right, **now))
        assert torch.equal(left, right) and not torch.equal(left, start)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        x = sample()
        self.A, self.D = torch.nn.Parameter(x["A"]), torch.nn.Parameter(x["D"])

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, self.A, B, C, self.D, delta_softplus=True)[0]


def test_export_with_any_length_and_batch() -> None:
    layer, x = Layer(), sample()
    args = tuple(x[k] for k in ("u", "delta", "B", "C"))
    b, l = torch.export.Dim("b"), torch.export.Dim("l")
    program = torch.export.export(layer, args, dynamic_shapes=({0: b, 2: l}, {0: b, 2: l}, {0: b, 3: l}, {0: b, 3: l}))
    other = tuple(sample(b=5, l=200)[k] for k in ("u", "delta", "B", "C"))
    assert torch.equal(program.module()(*other), layer(*other))
    assert "scanc.selective_scan" in str(program.graph_module.code)


# -- autocast ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_casts_what_runs_over_time(compiled: bool) -> None:
    x = leafy(sample(n=16))

    def call(x: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return selective_scan(**x)

    y, last = (counted(call)[0] if compiled else call)(x)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    half = {k: v.detach().bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
    assert torch.equal(y, selective_scan(**half)[0])
    for leaf, gradient in zip(wanted(x), torch.autograd.grad(y.float().sum(), wanted(x)), strict=True):
        assert gradient.dtype == leaf.dtype == torch.float32 and gradient.isfinite().all() and gradient.any()


def test_autocast_leaves_double_precision_alone() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, _ = min_gru(**{k: wide(v) for k, v in INPUTS[min_gru].items()})
    assert h.dtype == torch.float64


# -- derivatives ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [min_gru, gated_attention, diagonal], ids=lambda op: op.name)
def test_first_and_second_derivatives_by_finite_differences(op: Op) -> None:
    x = {k: wide(v) for k, v in INPUTS[op].items()}
    small = {"b": 1, "d": 2, "h": 1, "l": 4, "n": 2, "k": 2, "v": 2}
    names = {a.name: a.alternatives[0].axes for a in op.arguments}
    x = {k: v[tuple(slice(small[a]) for a in names[k])].contiguous().requires_grad_() for k, v in x.items()}

    def call(*tensors: Tensor) -> Any:
        return op(*tensors)

    assert torch.autograd.gradcheck(call, tuple(x.values()))
    assert torch.autograd.gradgradcheck(call, tuple(x.values()))


def test_second_derivatives_of_a_float32_call() -> None:
    """A gradient penalty: first order in kernels, second by the reference, compared with all of it in float64."""

    def penalty(x: dict[str, Any], reference: bool) -> tuple[Tensor, ...]:
        y = several((min_gru.reference if reference else min_gru)(**x))[0]
        (g,) = torch.autograd.grad(y.square().sum(), x["x"], create_graph=True)
        return torch.autograd.grad(g.square().sum(), wanted(x))

    x, truth = leafy(INPUTS[min_gru]), leafy(INPUTS[min_gru], torch.float64)
    for found, right in zip(penalty(x, False), penalty(truth, True), strict=True):
        assert relative(found, right) < 2e-5


def test_gradients_nobody_wants_are_not_computed() -> None:
    x = sample()
    x["z"].requires_grad_()
    y, _ = selective_scan(**x)
    y.sum().backward()
    assert x["z"].grad is not None and x["z"].grad.any() and x["u"].grad is None
    z = sample()
    assert not selective_scan(**z)[0].requires_grad
    with torch.no_grad():
        assert not selective_scan(**leafy(z))[0].requires_grad


def test_a_gradient_for_the_state_alone() -> None:
    x, truth = leafy(sample()), leafy(sample(), torch.float64)
    come = normal(2, 24, 3, seed=30)
    found = torch.autograd.grad(selective_scan(**x)[1], wanted(x), come, allow_unused=True)
    right = torch.autograd.grad(selective_scan.reference(**truth)[1], wanted(truth), come.double(), allow_unused=True)
    for f, r in zip(found, right, strict=True):
        if r is None or not r.any():
            assert f is None or not f.any()  # C, D and z do not reach the state
        else:
            close(f, r, {torch.float32: 2e-5})


# -- threads ----------------------------------------------------------------------------------------------------------------------------


def test_threads_that_make_the_first_call_together() -> None:
    @sc.op
    def first(a: Float[Tensor, "b d l"], x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
        return sc.scan(sc.sigmoid(a), 1.2345 * x, axis="l")

    a, x = normal(2, 9, 30, seed=0), normal(2, 9, 30, seed=1)
    barrier, results, failures = threading.Barrier(6), list[Tensor](), list[BaseException]()

    def work() -> None:
        barrier.wait()
        try:
            u = x.clone().requires_grad_()
            y = first(a, u)
            results.append(torch.cat([y.detach(), torch.autograd.grad(y.sum(), u)[0]]))
        except BaseException as error:  # a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(results) == 6 and all(torch.equal(r, results[0]) for r in results)


# -- memory -----------------------------------------------------------------------------------------------------------------------------


def peak(run: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes torch had allocated at once while ``run`` ran, beyond what it had before; and what ``run`` gave."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made = run()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most, made


def size(tensors: list[Tensor] | tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_backward_needs_little_memory(dtype: torch.dtype) -> None:
    """At most inputs, outputs and gradients, and 15 % of that: the states (b d n l) would be 16 times an input."""
    x = leafy(sample(b=1, d=1024, l=1024, n=16 if dtype == torch.bfloat16 else 3, g=1, dtype=dtype))
    y, last = selective_scan(**x)
    come = torch.ones_like(y)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, wanted(x), come, retain_graph=True)

    backward()  # compiles
    most, gradients = peak(backward)
    everything = size(wanted(x)) + size([y, last, come]) + size(gradients)
    assert size(gradients) < most < size(gradients) + 0.15 * everything
