"""What ``scanc show --stage forms`` says: how a class was found, which forms follow, what others miss."""

from __future__ import annotations

import pytest

from scanc.cli.show import stage_texts


def forms(name: str) -> str:
    return stage_texts(name, "cpu:native:reference", "forward", None, None, None, "float32")["forms"]


@pytest.mark.parametrize(("name", "said"), [
    ("ssd", "is head (time and head"),
    ("ssd", "into h go outer products over p and n, a decay a head"),
    ("gla", "a decay a key"),
    ("ssd", "convolution  no: a transition has a time axis"),
    ("selective_scan", "chunked      no: the transition of 'h' varies over (b d l n)"),
    ("selective_scan", "step         no: 'h' starts from zero: give the op an argument initial_state"),
    ("s4d", "convolution  one kernel of all lags"),
    ("linear_recurrence", "chunked      no: a recurrence has no state axis of its own"),
])
def test_forms_and_what_they_miss(name: str, said: str) -> None:
    assert said in forms(name)
