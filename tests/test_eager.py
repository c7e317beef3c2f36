"""Plain calls go past torch's dispatcher; whatever the dispatcher has a part in does not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from scanc.eager import Recall, is_plain
from scanc.op import Op
from scanc.ops import linear_recurrence, selective_scan
from tests.checks import relative

A, X = torch.full((1, 3, 4), 0.5), torch.ones(1, 3, 4)
RIGHT = torch.tensor([1.0, 1.5, 1.75, 1.875]).expand(1, 3, 4)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each call of linear_recurrence that asked, whether it went past the dispatcher."""
    asked: list[bool] = []
    forward = type(linear_recurrence._registered).plain_forward

    def watched(self: Any, *given: Any) -> Any:
        made = forward(self, *given)
        asked.append(made is not None)
        return made

    monkeypatch.setattr(type(linear_recurrence._registered), "plain_forward", watched)
    yield asked


def test_a_plain_call_goes_past_the_dispatcher_and_gives_the_same(direct: list[bool]) -> None:
    parameter = torch.nn.Parameter(X.clone())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, last = linear_recurrence(A, parameter)
            assert relative(y, RIGHT) < 1e-6 and relative(last, RIGHT[..., -1]) < 1e-6 and not y.requires_grad
            assert all(torch.equal(a, b) for a, b in zip((y, last), torch.ops.scanc.linear_recurrence(A, parameter), strict=True))
    assert linear_recurrence(A, b=X, initial_state=None)[0].shape == (1, 3, 4)  # gradients are on, but nothing needs one
    assert direct == [True, True, True]


def test_gradients_need_it_no_more_than_results(direct: list[bool]) -> None:
    x = X.clone().requires_grad_()
    y, last = linear_recurrence(A, x)
    (y.sum() + 0 * last.sum()).backward()
    assert direct == [True] and x.grad is not None and float(x.grad[0, 0, 0]) == 1.875
    through = X.clone().requires_grad_()
    torch.ops.scanc.linear_recurrence(A, through)[0].sum().backward()
    assert torch.equal(x.grad, through.grad)
    # In order of what it is the gradient of, whatever order that lies in.
    turned = X.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    linear_recurrence(A, turned)[0].sum().backward()
    assert turned.grad is not None and turned.grad.stride() == turned.stride() and torch.equal(turned.grad, x.grad)


def test_whatever_watches_or_changes_a_call_sees_it(direct: list[bool]) -> None:
    with Seen() as seen:
        linear_recurrence(A, X)
    assert any("scanc.linear_recurrence" in name for name in seen.names)
    with torch.profiler.profile() as profile:
        linear_recurrence(A, X)
    assert any("scanc::linear_recurrence" in event.key for event in profile.key_averages())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_recurrence(A, X)[0].dtype == torch.bfloat16
    assert direct == [False, False, False, True]  # once autocast has cast, what it calls is plain
    direct.clear()
    with BaseTorchFunctionMode():
        linear_recurrence(A, X)
    assert direct == [False]


def test_tensors_out_of_the_ordinary() -> None:
    class Sub(Tensor):
        pass

    conj = torch.ones(2, dtype=torch.complex64).conj()
    assert is_plain([A, None, X, torch.ones(2, dtype=torch.complex64)])
    for odd in (A.as_subclass(Sub), torch.ones(2, device="meta"), conj, conj.imag, torch.eye(2).to_sparse(), [1.0], 1.0):
        assert not is_plain([A, odd])  # type: ignore[list-item]
    with forward_ad.dual_level():
        assert not is_plain([A])
    seen: list[bool] = []
    def look(x: Tensor) -> Tensor:
        seen.append(is_plain([x]))
        return x

    torch.func.vmap(look)(A)
    assert seen == [False]
    # A negated view is read as what it stands for.
    negative = torch.complex(X, -X).conj().imag
    assert negative.is_neg() and relative(linear_recurrence(A, negative)[0], RIGHT) < 1e-6


MALFORMED: list[Callable[[Op], Any]] = [
    lambda op: op(A),
    lambda op: op(A, X, None, None),
    lambda op: op(A, X, a=A),
    lambda op: op(A, X, nonsense=1),
    lambda op: op(A, 3.0),
]


@pytest.mark.parametrize("call", MALFORMED)
def test_malformed_calls_are_refused(call: Callable[[Op], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError, ValueError), match="linear_recurrence"):
        call(linear_recurrence)


def test_a_step_refuses_what_is_no_argument_of_it() -> None:
    inputs = dict(u=torch.rand(1, 4), delta=torch.rand(1, 4), A=-torch.rand(4, 2), B=torch.rand(1, 1, 2), C=torch.rand(1, 1, 2))
    for name in ("initial_state", "nonsense"):
        with pytest.raises(RuntimeError, match=name):
            selective_scan.step(torch.zeros(1, 4, 2), **inputs, **{name: torch.zeros(1, 4, 2)})


def test_a_step_past_the_dispatcher_changes_its_state() -> None:
    inputs = dict(u=torch.rand(1, 4), delta=torch.rand(1, 4), A=-torch.rand(4, 2), B=torch.rand(1, 1, 2), C=torch.rand(1, 1, 2))
    plain, through = torch.rand(1, 4, 2), torch.empty(1, 4, 2)
    through.copy_(plain)
    for _ in range(3):
        y = selective_scan.step(plain, **inputs)
        assert torch.equal(y, torch.ops.scanc.selective_scan_step(through, **inputs)) and torch.equal(plain, through)
        assert float(y.norm()) > 0.01


def test_a_like_call_goes_straight_to_its_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = linear_recurrence._registered
    monkeypatch.setattr(registered, "recall", Recall())
    with torch.no_grad():
        linear_recurrence(A, X)
        monkeypatch.setattr(registered.dispatch, "forward", lambda *given: pytest.fail("the call was routed again"))
        y, last = linear_recurrence(A.clone(), 2 * X)
        assert relative(y, 2 * RIGHT) < 1e-6 and relative(last, 2 * RIGHT[..., -1]) < 1e-6
    for unlike in ((A, X.mT.contiguous().mT), (A.double(), X.double()), (A[..., :3], X[..., :3])):
        with pytest.raises(pytest.fail.Exception, match="routed again"):
            linear_recurrence(*unlike)


def test_a_like_step_reads_and_writes_the_state_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = linear_recurrence._registered
    monkeypatch.setattr(registered, "recall", Recall())
    first, second = torch.ones(1, 3), torch.full((1, 3), 4.0)
    a, b = A[..., 0].contiguous(), X[..., 0].contiguous()
    assert relative(linear_recurrence.step(first, a, b), 1.5 * torch.ones(1, 3)) < 1e-6
    monkeypatch.setattr(registered.dispatch, "step", lambda *given: pytest.fail("the call was routed again"))
    y = linear_recurrence.step(second, a, b)
    assert torch.equal(y, torch.full((1, 3), 3.0)) and torch.equal(second, y) and y.data_ptr() != second.data_ptr()
    assert torch.equal(first, torch.full((1, 3), 1.5))


def test_what_torch_has_a_part_in_is_not_recalled() -> None:
    recall = Recall()
    recall.keep(lambda values: values, [A, None, True])
    assert recall.find([A.clone(), None, True]) is not None
    for unlike in ([A, None, 1], [A, True, None], [A.mT.contiguous().mT, None, True], [A.double(), None, True],
                   [torch.nn.Parameter(A), None, True], [A.clone().requires_grad_(), None, True], [A, None, []]):  # fmt: skip
        assert recall.find(unlike) is None
    with torch.no_grad():
        x = A.clone().requires_grad_()
        recall.keep(lambda values: values, [x, None, True])
        assert recall.find([x, None, True]) is not None
    assert recall.find([x, None, True]) is None
    turned_on = (
        torch.autocast("cpu"), Seen(), BaseTorchFunctionMode(), FakeTensorMode(), torch.profiler.profile(), forward_ad.dual_level()
    )  # fmt: skip
    for mode in turned_on:
        with mode:
            assert recall.find([A, None, True]) is None
            recall.keep(lambda values: values, [A, X])
    assert recall.find([A, X]) is None
    found: list[object] = []
    torch.func.vmap(lambda x: found.append(recall.find([A, None, True])) or x)(A)
    assert found == [None]
    negative = torch.complex(X, -X).conj().imag
    recall.keep(lambda values: values, [negative.clone()])
    assert recall.find([negative]) is None and recall.find([negative.clone()]) is not None


def test_as_much_is_recalled_as_there_is_room_for() -> None:
    recall = Recall()
    recall.keep(lambda values: values, [A, X, A, A])
    assert recall.find([A, X, A, A]) is not None and recall.find([A, X, X, A.clone()]) is not None
    assert recall.find([A, X, X, A.double()]) is None and recall.find([X, A.double(), X, X]) is None
    for number in range(recall.MOST + 1):
        recall.keep(lambda values: values, [A], number)
    assert recall.find([A], 0) is None and recall.find([A], recall.MOST) is not None
    gone = weakref.ref(x := torch.ones(3))
    recall.keep(lambda values: values, [x])
    del x
    assert gone() is None
