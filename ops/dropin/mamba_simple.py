"""The Mamba block as a module: mamba_ssm's Mamba, with its parameters' names and its way to decode.

    x, z = in_proj(h);  u = silu(conv1d(x));  (Δ, B, C) = x_proj(u);  out_proj(scan(u, dt_proj(Δ), A, B, C, D) * silu(z))

    hidden_states (b l m), m = d_model       d = expand * m channels       n = d_state       w = d_conv taps       r = dt_rank

Source: Gu & Dao, Mamba (2023), §3.4 and §3.6; the module's calls are those of mamba_ssm 2.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scanc.ops import selective_scan
from scanc.ops.dropin._common import channels_of, dtypes_as_given, need, over_time, rows_of
from scanc.ops.dropin._decoding import kept_states, last_inputs, one_token, read_soon, step_of_logarithm
from scanc.ops.dropin._few_rows import few_rows, project
from scanc.ops.dropin.causal_conv1d import causal_conv1d_fn, update_in_layer
from scanc.ops.dropin.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from scanc.ops.initial import step_bias


class Mamba(nn.Module):
    """Mamba's mixer. ``use_fast_path`` is taken and changes nothing: both ways are the same kernels here.

    Decoding: ``inference_params`` is any object with ``seqlen_offset`` (0 for the prompt) and the dictionary
    ``key_value_memory_dict``, where each layer keeps its states under ``layer_idx``.
    Raises ArgumentError on an unknown ``dt_init``.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = d = int(expand * d_model)
        self.dt_rank = r = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.use_fast_path, self.layer_idx, self.activation = use_fast_path, layer_idx, "silu"
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * d, bias=bias, **made)
        self.conv1d = nn.Conv1d(d, d, d_conv, groups=d, padding=d_conv - 1, bias=conv_bias, **made)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(d, r + 2 * d_state, bias=False, **made)
        self.dt_proj = nn.Linear(r, d, bias=True, **made)
        # A_log and D stay in float32: powers of exp(dt A) magnify what a shorter A would be off by.
        decay = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(decay.log().repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d, device=device))
        self.out_proj = nn.Linear(d, d_model, bias=bias, **made)
        self._initialise_dt(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        # Marks that optimisers and initialisers of mamba_ssm's users look for.
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _initialise_dt(self, low: float, high: float, kind: str, scale: float, floor: float) -> None:
        """§3.6: softplus(dt_proj.bias) is log-uniform on [low, high]; the weight keeps the variance."""
        need(kind in ("constant", "random"), "Mamba", "dt_init", repr(kind), "it must be 'constant' or 'random'", "Correct it.")
        bound = scale * self.dt_rank**-0.5
        if kind == "constant":
            self.dt_proj.weight.fill_(bound)
        else:
            self.dt_proj.weight.uniform_(-bound, bound)
        self.dt_proj.bias.copy_(step_bias(self.d_inner, low, high, floor, self.D.device))

    @property
    def A(self) -> Tensor:
        """(d n) float32, negative."""
        return -torch.exp(self.A_log.float())

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """hidden_states (b l m) -> (b l m). With ``inference_params``, a prompt leaves its states and later calls take one step."""
        if inference_params is None:
            return self._sequence(hidden_states, None, None)
        conv_state, ssm_state = kept_states(self, inference_params, hidden_states.shape[0])
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, conv_state, ssm_state)[0]
        return self._sequence(hidden_states, conv_state, ssm_state)

    def _sequence(self, hidden_states: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None) -> Tensor:
        batch = hidden_states.shape[0]
        xz = channels_of(self.in_proj.weight, hidden_states)  # (b 2d l)
        if self.in_proj.bias is not None:
            xz = xz + self.in_proj.bias.to(xz.dtype).unsqueeze(-1)
        if conv_state is None or ssm_state is None:
            return mamba_inner_fn(
                xz,
                self.conv1d.weight,
                self.conv1d.bias,
                self.x_proj.weight,
                self.dt_proj.weight,
                self.out_proj.weight,
                self.out_proj.bias,
                self.A,
                D=self.D.float(),
                delta_bias=self.dt_proj.bias.float(),
            )
        x, z = xz.chunk(2, dim=1)
        conv_state.copy_(last_inputs(x, conv_state.shape[-1]))
        u = causal_conv1d_fn(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        assert isinstance(u, Tensor)
        dt, B, C = (self.x_proj.weight @ rows_of(u)).split([self.dt_rank, self.d_state, self.d_state])
        delta = over_time(self.dt_proj.weight, dt, batch)
        B, C = (t.unflatten(1, (batch, -1)).transpose(0, 1) for t in (B, C))  # (b n l)
        y, last_state = selective_scan_fn(
            u,
            delta,
            self.A,
            B,
            C,
            self.D.float(),
            z=z,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            return_last_state=True,
        )
        ssm_state.copy_(last_state)
        return self.out_proj(y.transpose(1, 2))

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token: hidden_states (b 1 m) -> out (b 1 m) and the two states, updated in place."""
        x, z = project(self.in_proj, one_token("Mamba.step", hidden_states)).chunk(2, dim=-1)  # (b d)
        nearer = read_soon(ssm_state, self.out_proj.weight)  # the device has little else to read until the scan
        u = update_in_layer(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, self.activation, nearer)
        dt, B, C = project(self.x_proj, u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = few_rows(dt, self.dt_proj.weight)
        given = {"u": u, "delta": delta, "A": self.A_log, "B": B.unsqueeze(1), "C": C.unsqueeze(1), "D": self.D, "z": z,
                 "delta_bias": self.dt_proj.bias}  # fmt: skip
        with dtypes_as_given(u):
            y = step_of_logarithm(selective_scan, ssm_state, given, {"delta_softplus": True})
        return project(self.out_proj, y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zeros to start from: conv_state (b d w) and ssm_state (b d n), in the parameters' dtype unless ``dtype`` says another."""
        made: dict[str, Any] = {"device": self.out_proj.weight.device, "dtype": dtype or self.conv1d.weight.dtype}
        return torch.zeros(batch_size, self.d_inner, self.d_conv, **made), torch.zeros(batch_size, self.d_inner, self.d_state, **made)


__all__ = ["Mamba"]
