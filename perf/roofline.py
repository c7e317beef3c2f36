"""The least time an op can take on a device: its floor, from what the graph must move and compute.

    floor = the largest of  bytes / bandwidth,  exponentials / special-function rate,  multiply-adds / matrix rate,  one launch

Bytes count each input and each output once. Exponentials count every node that needs one, over that node's own axes.
Multiply-adds count what any form must do: one for each element of a recurrence, one for each element of a contraction.
No unit is faster at arithmetic than the matrix units, so dividing by their rate keeps the floor a floor, whatever the form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from scanc import runtime
from scanc.ir import Axes, Graph, Node, Type
from scanc.perf.timing import measure

# Pointwise ops that need one exponential each. A softplus needs a logarithm and a sigmoid a reciprocal too, but those can be
# had from other units; the one exponential cannot be avoided.
EXPONENTIALS = ("exp", "exp2", "expm1", "sigmoid", "silu", "softplus", "tanh", "erf")

# Without a unit for it, an exponential in float32 costs at least these vector operations: scale, round, subtract, a polynomial
# of degree four, and an addition to the exponent.
CPU_OPERATIONS_PER_EXP = 8


@dataclass(frozen=True)
class Ceilings:
    """What a device can do in a second. ``shared``: exponentials and multiply-adds compete for the same units (a CPU)."""

    bytes: float
    exps: float
    flops: float
    launch_ms: float
    source: str
    shared: bool = False


# Measured once and recorded: copy bandwidth, ex2 rate (16 a cycle on each of 132 multiprocessors at 1.755 GHz), bf16 matrix product.
RECORDED = {
    "NVIDIA H100 80GB HBM3": Ceilings(bytes=3.0e12, exps=3.7e12, flops=700e12, launch_ms=2e-3, source="recorded"),
}


@dataclass(frozen=True)
class Floor:
    """The least time, what sets it (memory, matrix, special or launch), and the counts behind it."""

    ms: float
    bound: str
    bytes: int
    exps: int
    flops: int


def floor(graph: Graph, sizes: Mapping[str, int], dtypes: Mapping[str, torch.dtype] | torch.dtype, device: str | torch.device) -> Floor:
    """The floor of one evaluation of ``graph`` on ``device``.

    ``sizes``   {axis: positions}; an axis that is absent counts one position (time, in a step)
    ``dtypes``  of inputs and outputs by name, or one for all; a type that is concrete in the graph needs none
    """
    return floor_under(graph, sizes, dtypes, ceilings(device))


def floor_under(graph: Graph, sizes: Mapping[str, int], dtypes: Mapping[str, torch.dtype] | torch.dtype, limits: Ceilings) -> Floor:
    """``floor`` for given ceilings; needs no device."""
    moved, exps, flops = count_bytes(graph, sizes, dtypes), count_exps(graph, sizes), count_flops(graph, sizes)
    special, matrix = exps / limits.exps, flops / limits.flops
    if limits.shared:
        special, matrix = (special + matrix, 0.0) if special >= matrix else (0.0, special + matrix)
    seconds = {"memory": moved / limits.bytes, "special": special, "matrix": matrix, "launch": limits.launch_ms / 1e3}
    bound = max(seconds, key=seconds.__getitem__)
    return Floor(1e3 * seconds[bound], bound, moved, exps, flops)


def elements(axes: Axes, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes.get(a, 1) for a in axes)


def count_bytes(graph: Graph, sizes: Mapping[str, int], dtypes: Mapping[str, torch.dtype] | torch.dtype) -> int:
    """Bytes of every input and every output, each once; a state updated in place is both."""
    tensors = [(str(n.name), n.type) for n in graph.inputs]
    tensors += [(o.name, Type(o.axes, o.node.type.dtype)) for o in graph.outputs]
    return sum(elements(t.axes, sizes) * _width(name, t, dtypes) for name, t in tensors)


def _width(name: str, type_: Type, dtypes: Mapping[str, torch.dtype] | torch.dtype) -> int:
    """Bytes of one element: the dtype given for this name, else the graph's own where it is concrete, else the kind's usual one."""
    if isinstance(dtypes, Mapping) and name in dtypes:
        return dtypes[name].itemsize
    concrete = getattr(torch, type_.dtype, None)
    if isinstance(concrete, torch.dtype):
        return concrete.itemsize
    usual = dtypes if isinstance(dtypes, torch.dtype) else torch.float32
    return {"real": usual.itemsize, "complex": 2 * max(usual.itemsize, 4), "int": 4, "bool": 1}[type_.kind]


def count_exps(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Exponentials: one an element of every node that needs one. A complex one needs a real one, a sine and a cosine: 3."""
    return sum(elements(n.axes, sizes) * (3 if n.kind == "complex" else 1) for n in graph.nodes() if n.op in EXPONENTIALS)


def count_flops(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Two (a multiplication and an addition) an element of each recurrence, contraction and short convolution; complex counts four times.

    A convolution as long as its input goes by way of Fourier transforms: three real ones of twice the length, 2.5 N log2 N each.
    """
    return sum(_flops(n, sizes) * (4 if n.kind == "complex" else 1) for n in graph.nodes())


def _flops(node: Node, sizes: Mapping[str, int]) -> int:
    match node.op:
        case "scan":
            return 2 * elements(node.axes, sizes)
        case "sum":
            return 2 * elements(node.args[0].axes, sizes)
        case "conv" | "conv_kernel_grad":
            time, tap = node.attrs["axis"], node.attrs["tap"]
            lanes = dict.fromkeys((*node.axes, *node.args[0].axes))
            rows = elements(tuple(a for a in lanes if a not in (time, tap)), sizes)
            length = 2 * sizes.get(time, 1)
            if tap == time or sizes.get(tap, 1) > length:
                return int(rows * 3 * 2.5 * length * max(1.0, math.log2(length)))
            return 2 * rows * sizes.get(time, 1) * sizes.get(tap, 1)
    return 0


# -- what a device can do -----------------------------------------------------------------------------------------------------


def ceilings(device: str | torch.device) -> Ceilings:
    """The recorded ceilings of this model of device, else ones measured here, once, in about a second."""
    device = torch.device(device)
    name = runtime.device_name(device)
    return RECORDED.get(name) or _measured(name, device.type)


@functools.cache
def _measured(name: str, kind: str) -> Ceilings:
    return _measure_cuda() if kind == "cuda" else _measure_cpu()


def _rate(amount: float, call: Callable[[], object], device: str) -> float:
    """Amount a second, by the fastest tenth of the calls: a ceiling is what the device can do, not what it usually does."""
    return amount / (1e-3 * measure(call, device, budget_ms=150.0, flush=False).ms_p10)


def _measure_cpu() -> Ceilings:
    # 64 MiB each way is past the last cache of most machines a single process has to itself.
    source, target = torch.ones(2, 1 << 24)
    copied = 2 * source.numel() * source.element_size()
    a, b, c = torch.ones(3, 1024, 1024)
    flops = _rate(2.0 * 1024**3, lambda: torch.mm(a, b, out=c), "cpu")
    bandwidth = _rate(copied, lambda: target.copy_(source), "cpu")
    return Ceilings(bytes=bandwidth, exps=flops / 2 / CPU_OPERATIONS_PER_EXP, flops=flops, launch_ms=1e-3, source="measured", shared=True)


def _measure_cuda() -> Ceilings:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    source, target = torch.ones(2, 1 << 27, device="cuda")
    copied = 2 * source.numel() * source.element_size()
    bandwidth = _rate(copied, lambda: target.copy_(source), "cuda")
    a, b, c = torch.ones(3, 8192, 8192, dtype=torch.bfloat16, device="cuda")
    flops = _rate(2.0 * 8192**3, lambda: torch.mm(a, b, out=c), "cuda")
    # Sixteen a cycle on each multiprocessor, NVIDIA's figure since Volta; clock_rate is in kHz.
    exps = 16.0 * properties.multi_processor_count * 1e3 * properties.clock_rate
    return Ceilings(bytes=bandwidth, exps=exps, flops=flops, launch_ms=2e-3, source="measured")
