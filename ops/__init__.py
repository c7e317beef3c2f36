"""Every op scanc ships: one file each, the same order in each: equation and shapes, the DSL op, the public function, examples."""

from scanc.ops.causal_conv1d import causal_conv1d
from scanc.ops.fft_conv import fft_conv, fir_conv
from scanc.ops.gated_norm import gated_norm
from scanc.ops.gla import gla
from scanc.ops.linear_recurrence import linear_recurrence
from scanc.ops.rwkv6 import rwkv6
from scanc.ops.s4d import s4d
from scanc.ops.selective_scan import selective_scan
from scanc.ops.ssd import ssd

__all__ = ["causal_conv1d", "fft_conv", "fir_conv", "gated_norm", "gla", "linear_recurrence", "rwkv6", "s4d", "selective_scan", "ssd"]
