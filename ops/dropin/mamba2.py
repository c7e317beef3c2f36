"""The Mamba-2 block as a module: mamba_ssm's Mamba2, with its parameters' names and its way to decode.

    z0, x0, z, xBC, dt = in_proj(u);  x, B, C = silu(conv1d(xBC));  y = ssd(x, dt, A, B, C, D)
    out_proj(silu(z0) x0, norm(y, z))                                               z0 and x0 where d_ssm < d_inner only

    u (b l m), m = d_model       d_inner = expand * m, of which d = d_ssm = h p channels are scanned: h heads, p = headdim
    n = d_state      g = ngroups, each with its own B, C and norm      w = d_conv taps

Source: Dao & Gu, Transformers are SSMs (2024), §7; the module's calls are those of mamba_ssm 2.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scanc.ops import ssd
from scanc.ops.dropin._common import dtypes_as_given, need
from scanc.ops.dropin._decoding import kept_states, last_inputs, one_token, read_soon, step_of_logarithm
from scanc.ops.dropin._few_rows import few_rows, is_served, project
from scanc.ops.dropin.causal_conv1d import causal_conv1d_fn, causal_conv1d_varlen_states, update_in_layer
from scanc.ops.dropin.layernorm_gated import RMSNorm
from scanc.ops.dropin.ssd_combined import (
    NO_LIMIT,
    by_head,
    limits,
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
    projected,
)
from scanc.ops.initial import step_bias
from scanc.ops.selective_scan import resets_from_lengths


class Mamba2(nn.Module):
    """Mamba-2's mixer. ``use_mem_eff_path`` and ``chunk_size`` are taken and change no result: how to compute is a schedule's to say.

    Decoding: ``inference_params`` is any object with ``seqlen_offset`` (0 for the prompt) and the dictionary
    ``key_value_memory_dict``, where each layer keeps its states under ``layer_idx``.
    Raises ArgumentError on widths that do not divide, an initial range of A that is none, and a ``process_group``: the layer
    is not split over devices.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = NO_LIMIT,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.conv_init, self.expand = d_model, d_state, d_conv, conv_init, expand
        self.d_inner = expand * d_model
        self.headdim, self.ngroups = headdim, ngroups
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.nheads = self.d_ssm // headdim
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate, self.dt_limit = D_has_hdim, rmsnorm, norm_before_gate, dt_limit
        self.activation, self.chunk_size, self.use_mem_eff_path, self.layer_idx = "silu", chunk_size, use_mem_eff_path, layer_idx
        self._check(A_init_range, process_group)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        conv_dim = self.d_ssm + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * ngroups * d_state + self.nheads, bias=bias, **made)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, d_conv, groups=conv_dim, padding=d_conv - 1, bias=conv_bias, **made)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(step_bias(self.nheads, dt_min, dt_max, dt_init_floor, device).to(dtype))
        decay = torch.empty(self.nheads, dtype=torch.float32, device=device).uniform_(*A_init_range)
        self.A_log = nn.Parameter(decay.log().to(dtype))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        if rmsnorm:
            self.norm = RMSNorm(self.d_ssm, eps=1e-5, norm_before_gate=norm_before_gate, group_size=self.d_ssm // ngroups, **made)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)
        # A mark that optimisers of mamba_ssm's users look for.
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _check(self, A_init_range: tuple[float, float], process_group: Any) -> None:
        d, p, h, g = self.d_ssm, self.headdim, self.nheads, self.ngroups
        need(process_group is None, "Mamba2", "process_group", "given", "the layer is not split over devices", "Leave it out.")
        need(d % p == 0, "Mamba2", "headdim", p, f"heads divide the {d} channels scanned", "Choose a divisor.")
        need(d <= self.d_inner, "Mamba2", "d_ssm", d, f"it is a part of the {self.d_inner} inner channels", "Lower it.")
        need(g > 0 and h % g == 0, "Mamba2", "ngroups", g, f"groups divide the {h} heads", "Choose a divisor.")
        low, high = A_init_range
        need(0 < low <= high, "Mamba2", "A_init_range", A_init_range, "it is a range above 0", "(1, 16) is usual.")

    @property
    def A(self) -> Tensor:
        """(h) float32, negative."""
        return -torch.exp(self.A_log.float())

    @property
    def _D(self) -> Tensor:
        """D as the scan reads it: (h) or (h p)."""
        return self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """u (b l m), or (b*l, m) where ``seqlen`` is l, -> the same shape.

        ``seq_idx`` (b l), or ``cu_seqlens`` (nseq + 1) with a batch of 1, says where packed sequences begin. With
        ``inference_params`` a prompt leaves its states (of packed prompts, one a sequence) and later calls take one step.
        """
        steps = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if inference_params is not None:
            count = steps.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            conv_state, ssm_state = kept_states(self, inference_params, count)
            if inference_params.seqlen_offset > 0:
                return self.step(u, conv_state, ssm_state)[0]
        if cu_seqlens is not None and seq_idx is None:
            seq_idx = resets_from_lengths(cu_seqlens, steps.shape[1])
        zxbcdt = self.in_proj(steps)
        whole = inference_params is None
        out = self._block(zxbcdt, seq_idx) if whole else self._prompt(zxbcdt, seq_idx, cu_seqlens, conv_state, ssm_state)
        return out if seqlen is None else out.flatten(0, 1)

    def _block(self, zxbcdt: Tensor, seq_idx: Tensor | None) -> Tensor:
        out = mamba_split_conv1d_scan_combined(
            zxbcdt,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            self.A,
            self._D,
            self.chunk_size,
            seq_idx=seq_idx,
            dt_limit=self.dt_limit,
            activation=self.activation,
            rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
            rmsnorm_eps=self.norm.eps if self.rmsnorm else 1e-6,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=self.norm_before_gate,
        )
        assert isinstance(out, Tensor)
        return out

    def _prompt(self, zxbcdt: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        z0, x0, z, xBC, dt = self._parts(zxbcdt)
        length = conv_state.shape[-1]
        if cu_seqlens is None:
            conv_state.copy_(last_inputs(xBC.transpose(1, 2), length))
        else:
            conv_state.copy_(causal_conv1d_varlen_states(xBC[0], cu_seqlens, length))
        conv = causal_conv1d_fn(xBC.transpose(1, 2), self.conv1d.weight.squeeze(1), self.conv1d.bias, seq_idx, activation=self.activation)
        assert isinstance(conv, Tensor)
        x, B, C = by_head(conv.transpose(1, 2), self.nheads, self.headdim, self.ngroups)
        y, *states = mamba_chunk_scan_combined(
            x,
            dt,
            self.A,
            B,
            C,
            self.chunk_size,
            self._D,
            None if self.rmsnorm else z.unflatten(-1, (-1, self.headdim)),
            self.dt_bias,
            seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            return_final_states=cu_seqlens is None,
            return_varlen_states=cu_seqlens is not None,
        )
        ssm_state.copy_(states[0])
        return self._out(z0, x0, y.flatten(-2), z)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token: hidden_states (b 1 m) -> out (b 1 m) and the two states, updated in place."""
        z0, x0, z, xBC, dt = self._parts(project(self.in_proj, one_token("Mamba2.step", hidden_states)))  # (b ...) each
        nearer = read_soon(ssm_state, self.out_proj.weight)
        conv = update_in_layer(xBC, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, self.activation, nearer)
        x, B, C = by_head(conv, self.nheads, self.headdim, self.ngroups)
        together = self._norms_with_product(z)
        gate = z.unflatten(-1, (-1, self.headdim)) if together or not self.rmsnorm else None
        given = {"x": x, "dt": dt, "A": self.A_log, "B": B, "C": C, "D": self._D, "z": gate, "dt_bias": self.dt_bias}
        with dtypes_as_given(x):
            y = step_of_logarithm(ssd, ssm_state, given, {"dt_softplus": True, **limits(self.dt_limit, True)})
        y = y.flatten(-2)
        if together:
            out = few_rows(y, self.out_proj.weight, self.out_proj.bias, self.norm.weight, self.norm.eps)
        elif self.d_ssm == self.d_inner:
            out = project(self.out_proj, self.norm(y, z) if self.rmsnorm else y)
        else:
            out = self._out(z0, x0, y, z)
        return out.unsqueeze(1), conv_state, ssm_state

    def _norms_with_product(self, z: Tensor) -> bool:
        """Whether a step's norm is made with its output's product, of what the scan's step has gated. Not in float16, which what is not
        normed yet may exceed."""
        plain = self.rmsnorm and not self.norm_before_gate and self.ngroups == 1 and self.d_ssm == self.d_inner
        return plain and z.dtype == torch.bfloat16 and not torch.compiler.is_compiling() and is_served(z, self.out_proj.weight)

    def _parts(self, zxbcdt: Tensor) -> tuple[Tensor, ...]:
        """z0, x0, z, xBC, dt."""
        rest = self.d_inner - self.d_ssm
        return zxbcdt.split([rest, rest, self.d_ssm, self.d_ssm + 2 * self.ngroups * self.d_state, self.nheads], dim=-1)

    def _out(self, z0: Tensor, x0: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return projected(z0, x0, self.norm(y, z) if self.rmsnorm else y, self.out_proj.weight, self.out_proj.bias)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zeros to start from: conv_state (b d+2gn w), channels last, and ssm_state (b h p n); ``dtype`` or the parameters' dtype."""
        made: dict[str, Any] = {"device": self.out_proj.weight.device, "dtype": dtype or self.conv1d.weight.dtype}
        conv_state = torch.zeros(batch_size, self.d_conv, self.conv1d.weight.shape[0], **made).transpose(1, 2)
        return conv_state, torch.zeros(batch_size, self.nheads, self.headdim, self.d_state, **made)


__all__ = ["Mamba2"]
