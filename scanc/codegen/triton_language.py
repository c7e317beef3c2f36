"""How Triton writes a real operation, and the functions it lacks."""

from __future__ import annotations

from scanc.codegen.emit import Dialect, atom, counts
from scanc.errors import UnsupportedForm
from scanc.ir import Node

KINDS = {"real": "tl.float32", "complex": "tl.float32", "int": "tl.int32", "bool": "tl.int1"}

# Functions Triton lacks, or has only as a vendor's library that its interpreter lacks. Each is a jit function printed where it is used.
HELPERS = {
    "log1p": """\
@triton.jit
def log1p(x):
    # log(1 + x), corrected for what 1 + x rounds away (Goldberg 1991, theorem 4).
    one = 1.0 + x
    lost = x / (one - 1.0)
    return tl.where((one == 1.0) | (one == float("inf")), x, tl.log2(one) * 0.6931471805599453 * lost)
""",
    "expm1": """\
@triton.jit
def expm1(x):
    # e^x - 1: the Taylor series where the difference would cancel.
    series = 1.0 + x * (1.0 / 8)
    series = 1.0 + x * (1.0 / 7) * series
    series = 1.0 + x * (1.0 / 6) * series
    series = 1.0 + x * (1.0 / 5) * series
    series = 1.0 + x * (1.0 / 4) * series
    series = 1.0 + x * (1.0 / 3) * series
    series = 1.0 + x * (1.0 / 2) * series
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp2(x * 1.4426950408889634) - 1.0)
""",
    "tanh": """\
@triton.jit
def tanh(x):
    # -t / (2 + t) for x >= 0, with t = e^-2|x| - 1
    t = expm1(-2.0 * tl.abs(x))
    return tl.where(x < 0.0, t, -t) / (2.0 + t)
""",
    "sign": """\
@triton.jit
def sign(x):
    # 0 and NaN give themselves
    return tl.where(x > 0, 1, tl.where(x < 0, -1, x))
""",
    "mean_of": """\
@triton.jit
def mean_of(x, count):
    # x / count to the nearest: what a mean of nearly equal numbers leaves of each is as small as their differences.
    return tl.div_rn(1.0 * x, 1.0 * count)
""",
    "total": """\
@triton.jit
def total(x, axis: tl.constexpr):
    return tl.reduce(x, axis, tl.standard._sum_combine, keep_dims=True)
""",
    "two_totals": """\
@triton.jit
def sums_of_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def two_totals(x, y, axis: tl.constexpr):
    return tl.reduce((x, y), axis, sums_of_two, keep_dims=True)
""",
    "running": """\
@triton.jit
def running(x, back: tl.constexpr):
    # Sums over steps up to each, or from each on.
    return tl.associative_scan(x, 0, tl.standard._sum_combine, reverse=back)
""",
}
_NEEDS = {"tanh": ("expm1",)}


class TritonDialect(Dialect):
    """Triton's language on tiles; ``used`` collects the helpers that the text calls."""

    calls = {"exp2": "tl.exp2", "log2": "tl.log2", "sqrt": "tl.sqrt", "rsqrt": "tl.rsqrt", "abs": "tl.abs", "sin": "tl.sin",
             "cos": "tl.cos", "erf": "tl.erf", "where": "tl.where"}

    def __init__(self) -> None:
        self.used: dict[str, None] = {}

    def helper(self, name: str) -> str:
        for needed in (*_NEEDS.get(name, ()), name):
            self.used[needed] = None
        return name

    def literal(self, value: float | int | bool) -> str:
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            return f'float("{value}")'
        return repr(value)

    def operation(self, op: str, args: list[str], node: Node) -> str:
        if op in ("maximum", "minimum"):
            return f"tl.{op}({', '.join(args)}, propagate_nan=tl.PropagateNan.ALL)"
        if op == "reciprocal":
            return f"1.0 / {atom(args[0])}"
        if op == "not":
            return f"~{atom(args[0])}"
        if op == "div" and counts(node):
            return f"{self.helper('mean_of')}({', '.join(args)})"
        if op in HELPERS:
            return f"{self.helper(op)}({', '.join(args)})"
        return super().operation(op, args, node)

    def cast(self, arg: str, node: Node) -> str:
        source = node.args[0].kind
        if source == node.kind:
            return arg
        if node.kind == "bool":
            return f"{atom(arg)} != 0"
        if node.kind == "complex" or source == "complex":
            raise UnsupportedForm(op=node.name or "cast", form="any kernel", forms="the reference",
                                  reason=f"no cast from {source} to {node.kind}")
        return f"tl.cast({arg}, {KINDS[node.kind]})"
