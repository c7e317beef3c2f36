"""What ``scanc show`` prints of the form convolution."""

from __future__ import annotations

from scanc.ops import fft_conv, s4d
from scanc.passes.backward import backward
from scanc.passes.specialize import specialize
from scanc.schedule import ConvolutionSchedule
from scanc.stages import stages
from scanc.target import Target

OUTLINE = """\
programs: d × some of b
transform d_y[b d l]
transform u[b d l]
multiply d_y with conj k, back to steps: d_u[b d l]
sum over b: d_y with conj u, back to steps: d_k[d l]
store d_u[b d l]"""


def test_outline_and_source_of_a_backward() -> None:
    graph = backward(fft_conv.graph(without=("k_rev", "pregate", "postgate", "mask")), ("u", "k"))
    graph = specialize(graph, {"u": "bfloat16", "k": "float32", "d_y": "bfloat16"})
    found = stages(graph, Target("cuda", "sm_90", "triton"), sizes={"b": 2, "d": 4, "l": 600})
    assert found["forms"].split("\n")[1].startswith("convolution ") and found["loops"] == OUTLINE
    for name in ("kernel_spectrum", "fft_conv_backward_convolution", "kernel_gradient"):
        assert found["source"].count(f"def {name}_kernel(") == 1
    assert "wgmma" in found["asm"]


def test_torchs_fft_has_no_source() -> None:
    found = stages(fft_conv.graph(), Target("cpu", "native", "cpp"), sizes={"b": 2, "d": 4, "l": 600})
    assert "torch's transforms" in found["source"]


def test_a_state_space_shown_as_a_convolution() -> None:
    graph = s4d.graph(without=("initial_state",))
    dtypes = {str(n.name): "complex64" if n.kind == "complex" else "float32" for n in graph.inputs} | {"u": "bfloat16"}
    schedule = ConvolutionSchedule(outer=64, inner=16)
    found = stages(specialize(graph, dtypes), Target("cuda", "sm_90", "triton"), schedule, sizes={"b": 2, "d": 4, "l": 600, "n": 8})
    assert "multiply u with kernel0" in found["loops"] and "def s4d_convolution_kernel(" in found["source"]
