"""Rivals: adapters that run other people's programs on a Problem's inputs, used where they can be imported.

Each adapter takes the op's own inputs by name and gives the results by name, so that a rival is checked against the oracle as
our kernels are. Figures that were taken once, with rivals that are awkward to build, are kept in ``anchors/<device>.json``.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scanc import runtime
from scanc.perf.pscan import pscan

ANCHORS = Path(__file__).parent / "anchors"

Inputs = Mapping[str, Tensor]
Forward = Callable[[Inputs, Mapping[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Peer:
    """A rival for one op: ``forward(inputs, options) -> {output: tensor}``.

    ``devices``  device types it runs on
    ``module``   what must be importable; "" for plain torch
    ``steps``    True when it computes the decode step (of ``<op>``'s step), False for whole sequences
    """

    name: str
    op: str
    forward: Forward
    devices: tuple[str, ...]
    module: str = ""
    steps: bool = False
    differentiable: bool = True

    def runs_on(self, device: str) -> bool:
        return device in self.devices and (not self.module or importlib.util.find_spec(self.module) is not None)

    def call(self, inputs: Inputs, options: Mapping[str, Any], pass_: str) -> Callable[[], dict[str, Tensor]]:
        """A call to time. For a backward the forward runs once, here, and the call gives ``{d_<input>: gradient}``."""
        if pass_ != "backward":
            def forward() -> dict[str, Tensor]:
                with torch.no_grad():
                    return self.forward(inputs, options)

            return forward
        leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items() if not k.startswith("d_") and v.is_floating_point()}
        given = {**inputs, **leaves}
        outputs = self.forward(given, options)
        wanted = [(o, inputs[f"d_{name}"]) for name, o in outputs.items() if f"d_{name}" in inputs and o.requires_grad]

        def backward() -> dict[str, Tensor]:
            found = torch.autograd.grad([o for o, _ in wanted], list(leaves.values()), [d.to(o.dtype) for o, d in wanted],
                                        retain_graph=True, allow_unused=True)
            return {f"d_{name}": g for name, g in zip(leaves, found, strict=True) if g is not None}

        return backward


def peers_for(op: str, pass_: str, device: str) -> list[Peer]:
    """Rivals of this op that can run here, on tensors of device type ``device``."""
    return [p for p in PEERS if p.op == op and p.steps == (pass_ == "step") and (pass_ != "backward" or p.differentiable)
            and p.runs_on(device)]


@dataclass(frozen=True)
class Anchor:
    """A rival's recorded time on one device."""

    peer: str
    ms: float
    floor_ms: float | None
    goal_ms: float | None
    date: str


def anchors(device_name: str) -> list[dict[str, Any]]:
    """The recorded rows for this device; empty where none were taken."""
    path = ANCHORS / f"{runtime.kebab(device_name)}.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    return [{**row, "date": data["date"]} for row in data["rows"]]


def anchor(device_name: str, op: str, case: Mapping[str, int], dtype: str, pass_: str, state: str = "float32") -> Anchor | None:
    """The fastest recorded rival for exactly this row, or None; ``state`` is the dtype a step keeps its state in."""
    same = [r for r in _recorded(device_name, op, case, dtype, pass_) if r.get("state", state) == state]
    if not same:
        return None
    best = min(same, key=lambda r: float(r["peer_ms"]))
    return Anchor(best["peer"], best["peer_ms"], best["floor_ms"], best["goal_ms"], best["date"])


def recorded_state(device_name: str, op: str, case: Mapping[str, int], dtype: str) -> str:
    """The dtype of the state that a rival's step was recorded with; float32 where none was recorded."""
    return next((str(r["state"]) for r in _recorded(device_name, op, case, dtype, "step") if "state" in r), "float32")


def _recorded(device_name: str, op: str, case: Mapping[str, int], dtype: str, pass_: str) -> list[dict[str, Any]]:
    wanted = (op, dict(case), dtype, pass_)
    return [r for r in anchors(device_name) if (r["op"], r["case"], r["dtype"], r["pass"]) == wanted]


# -- selective scan -----------------------------------------------------------------------------------------------------------


def _discretized(x: Inputs, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mamba's exp(dt A) and dt B u over (b l d n), with u and C over time second, in float32."""
    u, dt = x["u"].float(), x["delta"].float()
    if "delta_bias" in x:
        dt = dt + x["delta_bias"].float()[:, None]
    if options.get("delta_softplus"):
        dt = F.softplus(dt)
    dt, u = dt.transpose(1, 2), u.transpose(1, 2)
    b, c = (_per_step(x[name].float(), u.shape[-1]) for name in ("B", "C"))
    return torch.exp(dt[..., None] * x["A"].float()), (dt * u)[..., None] * b, u, c


def _per_step(x: Tensor, channels: int) -> Tensor:
    """B or C, given as (b g n l), (b n l) or (d n), to something that broadcasts to (b l d n)."""
    if x.dim() == 2:
        return x[None, None]
    if x.dim() == 3 or x.shape[1] == 1:
        return x.reshape(x.shape[0], 1, *x.shape[-2:]).permute(0, 3, 1, 2)
    return x.repeat_interleave(channels // x.shape[1], dim=1).permute(0, 3, 1, 2)


def _finished(x: Inputs, y: Tensor, u: Tensor) -> Tensor:
    """The skip and the gate, back to (b d l) and the input's dtype."""
    if "D" in x:
        y = y + x["D"].float() * u
    y = y.transpose(1, 2)
    if "z" in x:
        y = y * F.silu(x["z"].float())
    return y.to(x["u"].dtype)


def _selective_scan_by_steps(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """One torch operation after another along time, as reference code is written.

    Steps are taken apart by unbind: the gradient of an index would be as large as the whole, at every step again.
    """
    a, bu, u, c = _discretized(x, options)
    h = x["initial_state"].float() if "initial_state" in x else torch.zeros_like(a[:, 0])
    ys = []
    for a_t, bu_t, c_t in zip(a.unbind(1), bu.unbind(1), c.expand(-1, a.shape[1], -1, -1).unbind(1), strict=True):
        h = a_t * h + bu_t
        ys.append((h * c_t).sum(-1))
    return {"y": _finished(x, torch.stack(ys, 1), u), "last_state": h}


def _selective_scan_by(scan: Callable[[Tensor, Tensor], Tensor]) -> Forward:
    """The read-out is a batched matrix-vector product over n where B and C are one per step, as mamba.py does it."""

    def forward(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
        a, bu, u, c = _discretized(x, options)
        if "initial_state" in x:
            bu = torch.cat([bu[:, :1] + a[:, :1] * x["initial_state"].float()[:, None], bu[:, 1:]], 1)
        h = scan(a, bu)
        per_step = c.shape[2] == 1
        y = (h @ c[:, :, 0, :, None])[..., 0] if per_step else (h * c).sum(-1)
        return {"y": _finished(x, y, u), "last_state": h[:, -1]}

    return forward


def _mambapy(a: Tensor, b: Tensor) -> Tensor:
    from mambapy.pscan import pscan as theirs

    return theirs(a, b)


def _mamba_ssm_scan(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y, last = selective_scan_fn(x["u"], x["delta"], x["A"], x["B"], x["C"], x.get("D"), x.get("z"), x.get("delta_bias"),
                                bool(options.get("delta_softplus", False)), return_last_state=True)
    return {"y": y, "last_state": last}


def _mamba_ssm_step(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    y = selective_state_update(x["initial_state"], x["u"], x["delta"], x["A"], x["B"], x["C"], x.get("D"), x.get("z"), x.get("delta_bias"),
                               bool(options.get("delta_softplus", False)))
    return {"y": y}


# -- the others ---------------------------------------------------------------------------------------------------------------


def _mamba_ssm_chunks(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y, last = mamba_chunk_scan_combined(x["x"], x["dt"], x["A"], x["B"], x["C"], 256, D=x.get("D"), z=x.get("z"), dt_bias=x.get("dt_bias"),
                                        initial_states=x.get("initial_states"), dt_softplus=bool(options.get("dt_softplus", False)),
                                        return_final_states=True)
    return {"y": y, "last_state": last}


def _ssd_by_steps(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Mamba-2 one time step after another, the state (b h p n) in float32."""
    v, dt = x["x"].float(), x["dt"].float()
    if "dt_bias" in x:
        dt = dt + x["dt_bias"].float()
    if options.get("dt_softplus"):
        dt = F.softplus(dt)
    heads = v.shape[2] // x["B"].shape[2]
    b, c = (x[name].float().repeat_interleave(heads, dim=2) for name in ("B", "C"))
    decay, fed = torch.exp(dt * x["A"].float()), dt[..., None] * v
    h = x["initial_states"].float() if "initial_states" in x else v.new_zeros(*v.shape[:1], *v.shape[2:], b.shape[-1])
    ys = []
    for a_t, v_t, b_t, c_t in zip(decay.unbind(1), fed.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = a_t[..., None, None] * h + v_t[..., None] * b_t[:, :, None]
        ys.append((h @ c_t[..., None])[..., 0])
    y = torch.stack(ys, 1)
    if "D" in x:
        y = y + x["D"].float()[:, None] * v
    if "z" in x:
        y = y * F.silu(x["z"].float())
    return {"y": y.to(x["x"].dtype), "last_state": h}


def _linear_recurrence_by_steps(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    a, b = x["a"].float(), x["b"].float()
    h = x["initial_state"].float() if "initial_state" in x else torch.zeros_like(b[..., 0])
    hs = []
    for a_t, b_t in zip(a.unbind(-1), b.unbind(-1), strict=True):
        h = a_t * h + b_t
        hs.append(h)
    return {"h": torch.stack(hs, -1).to(x["b"].dtype), "last_state": h}


def _fft_conv(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """y = irfft(rfft(u) rfft(k)) at twice the length, so that nothing wraps around; the skip as H3 has it."""
    u, k = x["u"].float(), x["k"].float()
    length = u.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(u, 2 * length) * torch.fft.rfft(k, 2 * length), 2 * length)[..., :length]
    if "D" in x:
        y = y + u * x["D"].float()[:, None]
    return {"y": y.to(x["u"].dtype)}


def _conv1d_weight(x: Inputs) -> Tensor:
    """causal_conv1d's taps as the rivals take them, (d w), the present one last."""
    return torch.stack([x[f"w{lag}"] for lag in reversed(range(sum(name[1:].isdigit() for name in x)))], dim=-1)


def _conv1d(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    u, weight = x["x"], _conv1d_weight(x)
    width = weight.shape[-1]
    bias = x["bias"].to(u.dtype) if "bias" in x else None
    y = F.conv1d(F.pad(u, (width - 1, 0)), weight[:, None].to(u.dtype), bias, groups=weight.shape[0])
    return {"y": F.silu(y) if options.get("silu") else y}


def _causal_conv1d(x: Inputs, options: Mapping[str, Any]) -> dict[str, Tensor]:
    from causal_conv1d import causal_conv1d_fn

    activation = "silu" if options.get("silu") else None
    return {"y": causal_conv1d_fn(x["x"], _conv1d_weight(x), x.get("bias"), activation=activation)}


CPU, CUDA = ("cpu",), ("cuda",)
PEERS = (
    Peer("sequential torch", "selective_scan", _selective_scan_by_steps, CPU),
    Peer("parallel scan in torch", "selective_scan", _selective_scan_by(pscan), CPU + CUDA),
    Peer("mamba.py", "selective_scan", _selective_scan_by(_mambapy), CPU + CUDA, "mambapy"),
    Peer("mamba_ssm", "selective_scan", _mamba_ssm_scan, CUDA, "mamba_ssm"),
    Peer("mamba_ssm", "selective_scan", _mamba_ssm_step, CUDA, "mamba_ssm", steps=True),
    Peer("sequential torch", "ssd", _ssd_by_steps, CPU),
    Peer("mamba_ssm", "ssd", _mamba_ssm_chunks, CUDA, "mamba_ssm"),
    Peer("sequential torch", "linear_recurrence", _linear_recurrence_by_steps, CPU),
    Peer("torch.fft", "fft_conv", _fft_conv, CPU + CUDA),
    Peer("torch conv1d", "causal_conv1d", _conv1d, CPU + CUDA),
    Peer("causal_conv1d", "causal_conv1d", _causal_conv1d, CUDA, "causal_conv1d"),
)
