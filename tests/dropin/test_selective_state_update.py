"""One decode step in every shape the rivals' callers use, against the equation in float64."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from scanc.errors import ArgumentError
from scanc.ops.dropin.selective_state_update import selective_state_update, selective_state_update_ref
from scanc.ops.dropin.speculative import accept_tokens, selective_state_update_tokens
from tests.checks import close, normal, wide

B_, H_, P_, N_, G_ = 3, 4, 6, 5, 2


def inputs(heads: str = "", dtype: torch.dtype = torch.float32, b: int = B_) -> dict[str, Tensor]:
    """``heads``: "" for Mamba-1's (b d n), else "own" or "tied" heads: a value each for A, dt and dt_bias, spread by expand."""
    inner = (H_, P_) if heads else (H_ * P_,)
    made = {
        "state": normal(b, *inner, N_, seed=1, dtype=dtype),
        "x": normal(b, *inner, seed=2, dtype=dtype),
        "dt": normal(b, *inner, seed=3, dtype=dtype),
        "A": -1 - normal(*inner, N_, seed=4).abs(),
        "B": normal(b, G_, N_, seed=5, dtype=dtype),
        "C": normal(b, G_, N_, seed=6, dtype=dtype),
        "D": normal(*inner, seed=7),
        "z": normal(b, *inner, seed=8, dtype=dtype),
        "dt_bias": normal(*inner, seed=9),
    }
    if heads == "tied":
        made["dt"] = made["dt"][..., :1].expand(-1, -1, P_)
        made["A"] = made["A"][:, :1, :1].expand(-1, P_, N_)
        made["dt_bias"] = made["dt_bias"][:, :1].expand(-1, P_)
    return made


def by_equation(x: dict[str, Tensor], softplus: bool = True) -> tuple[Tensor, Tensor]:
    """(out, state), one state at a time."""
    x = {k: wide(v) for k, v in x.items()}
    dt = x["dt"] + x["dt_bias"] if "dt_bias" in x else x["dt"]
    dt = torch.log1p(torch.exp(dt)) if softplus else dt
    h, out = torch.empty_like(x["state"]), torch.empty_like(x["x"])
    inner = x["x"].shape[1:]
    for at in torch.cartesian_prod(*(torch.arange(s) for s in inner)).reshape(-1, len(inner)).tolist():
        i = (slice(None), *at)
        if x["B"].dim() == 2:
            b_, c_ = x["B"], x["C"]
        else:
            group = at[0] // (inner[0] // x["B"].shape[1])
            b_, c_ = x["B"][:, group], x["C"][:, group]
        h[i] = torch.exp(dt[i][:, None] * x["A"][tuple(at)]) * x["state"][i] + (dt[i] * x["x"][i])[:, None] * b_
        y = (h[i] * c_).sum(-1)
        y = y + x["D"][tuple(at)] * x["x"][i] if "D" in x else y
        out[i] = y * x["z"][i] * torch.sigmoid(x["z"][i]) if "z" in x else y
    return out, h


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [("", torch.float32), ("", torch.bfloat16), ("own", torch.float32), ("tied", torch.float32), ("tied", torch.bfloat16)],
)
def test_step(heads: str, dtype: torch.dtype) -> None:
    """The state may be stored in any dtype: vLLM's and mamba_ssm's caches are often bfloat16."""
    given = inputs(heads, dtype)
    wanted, after = by_equation(given)
    reference = {k: v.clone() for k, v in given.items()}
    out = selective_state_update(**given, dt_softplus=True)
    assert out.dtype == given["state"].dtype == dtype and out.shape == given["x"].shape
    close(out, wanted)
    close(given["state"], after)
    close(selective_state_update_ref(**reference, dt_softplus=True), wanted)
    assert torch.allclose(reference["state"], given["state"], rtol=1e-2)


def test_bare_step_with_one_group() -> None:
    """No D, z or dt_bias (mamba_ssm raises TypeError there), B and C (b n), no softplus."""
    given = {k: v for k, v in inputs().items() if k not in ("D", "z", "dt_bias")}
    given |= {"B": given["B"][:, 0], "C": given["C"][:, 0], "dt": given["dt"].abs()}
    wanted, after = by_equation(given, softplus=False)
    close(selective_state_update(**given), wanted)
    close(given["state"], after)


@pytest.mark.parametrize("heads", ["", "own"])
def test_slots(heads: str) -> None:
    """Rows live in slots; a padded row gives zero, and no slot but the named ones changes, to the bit."""
    given = inputs(heads)
    cache = normal(6, *given["state"].shape[1:], seed=10)
    before, where = cache.clone(), torch.tensor([4, -1, 0], dtype=torch.int32)
    given["state"] = cache[where.clamp(min=0).long()].clone()
    wanted, after = by_equation(given)
    given |= {"state": cache, "x": given["x"].clone()}
    given["x"][1] = torch.nan  # what stands in padding is anything
    out = selective_state_update(**given, dt_softplus=True, state_batch_indices=where)
    close(out[[0, 2]], wanted[[0, 2]])
    assert not out[1].any()
    close(cache[[4, 0]], after[[0, 2]])
    assert torch.equal(cache[[1, 2, 3, 5]], before[[1, 2, 3, 5]])


def test_all_slots_padding() -> None:
    given = inputs()
    before = given["state"].clone()
    out = selective_state_update(**given, dt_softplus=True, state_batch_indices=torch.full((B_,), -1))
    assert not out.any() and torch.equal(given["state"], before)


def test_no_rows() -> None:
    given = {**inputs(b=0), "state": normal(2, H_ * P_, N_, seed=1)}
    before = given["state"].clone()
    out = selective_state_update(**given, state_batch_indices=torch.zeros(0, dtype=torch.int32))
    assert out.shape == (0, H_ * P_) and torch.equal(given["state"], before)


def test_a_state_that_is_no_block_of_memory() -> None:
    """Heads and their dims apart in memory: the state is still updated where it is."""
    given = inputs("own")
    wanted, after = by_equation(given)
    given["state"] = given["state"].transpose(1, 2).contiguous().transpose(1, 2)
    place = given["state"].data_ptr()
    close(selective_state_update(**given, dt_softplus=True), wanted)
    close(given["state"], after)
    assert given["state"].data_ptr() == place


def test_a_decode_step_compiles_whole() -> None:
    given, where = inputs("tied"), torch.tensor([2, 0, -1])
    again = {**given, "state": given["state"].clone()}
    call = torch.compile(selective_state_update, fullgraph=True, backend="aot_eager")
    wanted = selective_state_update(**again, dt_softplus=True, state_batch_indices=where)
    close(call(**given, dt_softplus=True, state_batch_indices=where), wanted)
    close(given["state"], again["state"])


def drafted(heads: str, k: int) -> dict[str, Tensor]:
    """k tokens a row."""
    every = [inputs(heads)] + [{n: v + 0.1 * j for n, v in inputs(heads).items()} for j in range(1, k)]
    tied = {"dt": lambda t: t[..., :1].expand(t.shape)} if heads == "tied" else {}
    over = {n: torch.stack([e[n] for e in every], dim=1) for n in ("x", "dt", "B", "C", "z")}
    return every[0] | {n: tied.get(n, lambda t: t)(t) for n, t in over.items()}


@pytest.mark.parametrize("heads", ["", "own", "tied"])
def test_drafted_tokens_are_single_steps(heads: str) -> None:
    given = drafted(heads, 4)
    before, state = given["state"].clone(), given["state"].clone()
    out, states = selective_state_update_tokens(**given, dt_softplus=True)
    assert torch.equal(given["state"], before) and out.shape == given["x"].shape and states.shape == (B_, 4, *before.shape[1:])
    kept = [before]
    for j in range(4):
        one = {n: v[:, j] if n in ("x", "dt", "B", "C", "z") else v for n, v in given.items()}
        close(out[:, j], selective_state_update(**{**one, "state": state}, dt_softplus=True))
        close(states[:, j], state)
        kept.append(state.clone())
    accepted = torch.tensor([0, 2, 4], dtype=torch.int32)
    assert accept_tokens(given["state"], states, accepted) is given["state"]
    for i, count in enumerate(accepted.tolist()):
        close(given["state"][i], kept[count][i])
    assert torch.equal(given["state"][0], before[0])


def test_drafted_tokens_of_slots() -> None:
    """Padding gives zeros and changes no slot; the slots of the others become what was accepted."""
    given = drafted("own", 3)
    wanted, states = selective_state_update_tokens(**given, dt_softplus=True)
    cache, where = normal(6, *given["state"].shape[1:], seed=10), torch.tensor([4, -1, 0], dtype=torch.int32)
    cache[[4, 0]] = given["state"][[0, 2]]
    before = cache.clone()
    out, found = selective_state_update_tokens(**{**given, "state": cache}, dt_softplus=True, state_batch_indices=where)
    assert torch.equal(cache, before) and not out[1].any() and not found[1].any()
    close(out[[0, 2]], wanted[[0, 2]])
    accept_tokens(cache, found, torch.tensor([2, 3, 0]), where)
    close(cache[4], states[0, 1])
    assert torch.equal(cache[[0, 1, 2, 3, 5]], before[[0, 1, 2, 3, 5]])


def test_drafting_compiles_whole_and_refuses_by_name() -> None:
    given, accepted = drafted("tied", 2), torch.tensor([1, 2, 0])

    def call(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out, states = selective_state_update_tokens(**x, dt_softplus=True)
        return out, accept_tokens(x["state"], states, accepted)

    again = {**given, "state": given["state"].clone()}
    for f, w in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(given), call(again), strict=True):
        close(f, w)
    with pytest.raises(ArgumentError, match="selective_state_update_tokens: argument 'z'"):
        selective_state_update_tokens(**{**given, "z": given["z"][:, :1]})
    with pytest.raises(ArgumentError, match="accept_tokens: argument 'accepted'"):
        accept_tokens(given["state"], given["state"].unsqueeze(1), accepted[:2])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("x", (B_, 7)), ("A", (7, N_)), ("B", (B_, 5, N_)), ("D", (1,)), ("state", (2, 3))],
)
def test_refusals_name_what_is_wrong(name: str, wrong: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=f"selective_state_update: argument '{name}'"):
        selective_state_update(**{**inputs(), name: torch.zeros(wrong)})


def test_signature_is_mamba_ssms() -> None:
    names = "state x dt A B C D z dt_bias dt_softplus state_batch_indices"
    assert list(inspect.signature(selective_state_update).parameters) == names.split()
