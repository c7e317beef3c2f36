"""Generation: decoding is the forward pass continued; sampling keeps to its options; stops; errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.models import Mamba, generate, stream
from scanc.models.generate import sample

PROMPT = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(1))


def test_greedy_generation_follows_the_forward_pass(model: Mamba) -> None:
    """Each token is the likeliest given all before it, by a forward pass over the whole: prefill and steps lose nothing."""
    out = generate(model, PROMPT, max_new_tokens=9, temperature=0)
    assert out.shape == (2, 16) and out.dtype == torch.int64 and torch.equal(out[:, :7], PROMPT)
    logits, _ = model(out)
    assert torch.equal(out[:, 7:], logits[:, 6:-1, :61].argmax(-1))


def test_decoded_logits_equal_one_forward(model: Mamba, relative: Callable[[Tensor, Tensor], float],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """What generate draws from, token after token, against one forward over prompt and continuation."""
    seen: list[Tensor] = []

    def spy(logits: Tensor, *options: object) -> Tensor:
        seen.append(logits)
        return sample(logits, *options)  # type: ignore[arg-type]

    monkeypatch.setitem(stream.__globals__, "sample", spy)
    out = generate(model, PROMPT, max_new_tokens=9, generator=torch.Generator().manual_seed(0))
    whole, _ = model(out)
    assert relative(torch.stack(seen, 1), whole[:, 6:-1, :61]) <= 1e-5


def test_a_seed_fixes_the_text_and_padded_ids_never_come(model: Mamba) -> None:
    with torch.no_grad():
        model.backbone.embedding.weight[61:] = 5.0  # ids 61 to 63 only pad the embedding
    first, again, other = (generate(model, PROMPT, max_new_tokens=60, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert int(first.max()) < 61


def test_sampling_follows_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = p.log().expand(20000, 4)

    def frequencies(**options: float) -> Tensor:
        return torch.bincount(sample(logits, generator=generator, **options), minlength=4) / 20000  # type: ignore[arg-type]

    def near(found: Tensor, wanted: Tensor) -> bool:
        return bool((found - wanted / wanted.sum()).abs().max() < 0.015)

    assert near(frequencies(), p)
    assert near(frequencies(temperature=0.5), p**2)
    assert near(frequencies(top_k=2), p * torch.tensor([1, 1, 0, 0]))
    assert near(frequencies(top_p=0.9), p * torch.tensor([1, 1, 1, 0]))
    assert near(frequencies(top_p=0.4), torch.tensor([1.0, 0, 0, 0]))
    assert near(frequencies(top_k=3, top_p=0.7), p * torch.tensor([1, 1, 0, 0]))
    assert torch.equal(sample(logits[:3], temperature=0), torch.zeros(3, dtype=torch.int64))
    assert frequencies(top_k=1)[0] == 1
    torch.manual_seed(0)
    assert near(torch.bincount(sample(logits), minlength=4) / 20000, p)


def test_stop_ends_each_row_and_then_all(model: Mamba) -> None:
    free = generate(model, PROMPT, max_new_tokens=40, generator=torch.Generator().manual_seed(0))[:, 7:]
    stops = {int(free[0, 4]), int(free[1, 9])}
    first = [min(t for t in range(40) if int(row[t]) in stops) for row in free]
    out = generate(model, PROMPT, max_new_tokens=40, generator=torch.Generator().manual_seed(0), stop=stops)[:, 7:]
    assert out.shape[1] == max(first) + 1
    for row, unstopped, end in zip(out, free, first, strict=True):
        assert torch.equal(row[:end + 1], unstopped[:end + 1])
        assert bool((row[end:] == row[end]).all())
    likeliest = int(generate(model, PROMPT[:1], max_new_tokens=1, temperature=0)[0, -1])
    assert generate(model, PROMPT[:1], max_new_tokens=40, temperature=0, stop=likeliest).shape == (1, 8)


def test_stream_yields_what_generate_collects(model: Mamba) -> None:
    tokens = list(stream(model, PROMPT, max_new_tokens=5, temperature=0))
    assert torch.equal(torch.stack(tokens, 1), generate(model, PROMPT, max_new_tokens=5, temperature=0)[:, 7:])
    assert torch.is_grad_enabled()
    assert torch.equal(generate(model, PROMPT, max_new_tokens=0), PROMPT)


@pytest.mark.parametrize("options, words", [
    ({"prompt": PROMPT[0]}, "'prompt' is .7,."), ({"prompt": PROMPT[:, :0]}, "'prompt' is .2, 0."),
    ({"prompt": PROMPT + 60}, "the vocabulary is 0 to 60"), ({"max_new_tokens": -1}, "'max_new_tokens' is -1"),
    ({"temperature": -0.5}, "'temperature' is -0.5"), ({"temperature": float("nan")}, "'temperature' is nan"),
    ({"top_k": -1}, "'top_k'"), ({"top_p": 0.0}, "'top_p'"), ({"top_p": 1.5}, "'top_p'"),
])
def test_wrong_options_are_named(model: Mamba, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        stream(model, **{"prompt": PROMPT, "max_new_tokens": 3, **options})
