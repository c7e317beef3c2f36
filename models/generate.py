"""Generation: a prompt is taken in at once (prefill), then one token after another (decode), from a state that never grows.

    stream(model, prompt, ...)    yields each new token (b) as it is drawn
    generate(model, prompt, ...)  collects them: (b t) -> (b t+k)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.models.language_model import Model


def generate(model: Model, prompt: Tensor, *, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             generator: torch.Generator | None = None, stop: int | Collection[int] | None = None) -> Tensor:
    """``prompt`` (b t) with up to ``max_new_tokens`` drawn tokens after it, (b t+k) int64.

    ``temperature``  divides the logits; 0 takes the most likely token
    ``top_k``        draws among the k most likely tokens; 0 among all
    ``top_p``        draws among the fewest tokens whose probabilities sum to p or more; the most likely one always stays
    ``generator``    of any device; the same seed gives the same text. None is torch's own
    ``stop``         one token or several: a row that drew one repeats it, and when all rows have, generation ends

    Raises ArgumentError on an empty prompt, tokens outside the vocabulary, or options out of range.
    """
    tokens = stream(model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator,
                    stop=stop)
    return torch.cat([prompt.long(), *(token[:, None] for token in tokens)], dim=1)


def stream(model: Model, prompt: Tensor, *, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           generator: torch.Generator | None = None, stop: int | Collection[int] | None = None) -> Iterator[Tensor]:
    """generate's tokens (b) int64, one at a time. Arguments and errors are generate's; errors come before the first token."""
    _check(model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    stops = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    return _stream(model, prompt, max_new_tokens, temperature, top_k, top_p, generator, stops)


@torch.no_grad()
def _stream(model: Model, prompt: Tensor, max_new_tokens: int, temperature: float, top_k: int, top_p: float,
            generator: torch.Generator | None, stops: tuple[int, ...]) -> Iterator[Tensor]:
    if max_new_tokens == 0:
        return
    stopping = torch.tensor(stops, dtype=torch.int64, device=prompt.device)
    logits, state = model(prompt, num_last_tokens=1)                                    # (b 1 v)
    token = sample(logits[:, 0, :model.config.vocab_size], temperature, top_k, top_p, generator)
    yield token
    for _ in range(max_new_tokens - 1):
        stopped = torch.isin(token, stopping)
        if stops and bool(stopped.all()):
            return
        logits = model.step(token, state)                                               # (b v)
        drawn = sample(logits[:, :model.config.vocab_size], temperature, top_k, top_p, generator)
        token = torch.where(stopped, token, drawn)
        yield token


def sample(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           generator: torch.Generator | None = None) -> Tensor:
    """One token (b) int64 from each row of ``logits`` (b v); the options are generate's."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)
        kept = ranked.cumsum(-1) - ranked < top_p  # what the more likely ones sum to is still below p: the first always is
        logits = logits.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), float("-inf"))
    probabilities = logits.softmax(-1)
    if generator is None:
        return torch.multinomial(probabilities, 1)[:, 0]
    return torch.multinomial(probabilities.to(generator.device), 1, generator=generator)[:, 0].to(logits.device)


def _check(model: Model, prompt: Tensor, *, max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    def need(argument: str, value: object, holds: bool, limit: str, remedy: str) -> None:
        if not holds:
            raise ArgumentError(op="generate", argument=argument, value=value, limit=limit, remedy=remedy)

    need("prompt", tuple(prompt.shape), prompt.dim() == 2 and prompt.numel() > 0, "it must be (b t), with one token or more",
         "Start from a token such as the end-of-text token.")
    need("max_new_tokens", max_new_tokens, max_new_tokens >= 0, "it must be 0 or more", "Give the number of tokens to draw.")
    need("temperature", temperature, 0 <= temperature < float("inf"), "it must be 0 or more, and finite", "1 leaves the logits alone.")
    need("top_k", top_k, top_k >= 0, "it must be 0 or more", "0 draws among all tokens.")
    need("top_p", top_p, 0 < top_p <= 1, "it must lie above 0 and not above 1", "1 draws among all tokens.")
    low, high, size = int(prompt.min()), int(prompt.max()), model.config.vocab_size
    # On a GPU the embedding would fail later, and take the process with it.
    need("prompt", f"tokens {low} to {high}", low >= 0 and high < size, f"the vocabulary is 0 to {size - 1}", "Use its own tokenizer.")
