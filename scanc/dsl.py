"""The language: what a person writes inside ``@sc.op``.

    import scanc.dsl as sc

    @sc.op
    def decay(x: Float[Tensor, "b d l"], gamma: Float[Tensor, "d"]) -> Float[Tensor, "b d l"]:
        return sc.scan(gamma, x, axis="l")             # h_t = gamma h_{t-1} + x_t

A ``Value`` stands for a tensor with named axes; two values broadcast by axis name, and an axis the signature calls a
group (``g``) meets the axis it divides (``h``, else ``d``) by repetition. The function runs once, at trace time: ``if`` on
options and on absent optional inputs chooses the graph; nothing may depend on a tensor's numbers.

The vocabulary is small on purpose. Pointwise functions are those of torch; the rest is ``sum``, ``shift``, ``scan``, ``last``,
``conv``, ``discretize``, ``rms_norm``, ``where`` and the complex helpers.
"""

from __future__ import annotations

import builtins
import contextvars
import linecache
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from scanc.errors import TraceError
from scanc.ir import Builder, Node

_HERE = str(Path(__file__).parent)
_tracer: contextvars.ContextVar[Tracer | None] = contextvars.ContextVar("scanc_tracer", default=None)

Operand = Any  # Value | float | int | bool | complex: what an operator's other side may be


class Tracer:
    """Holds the builder while an op's function runs, and says where in the user's file an error is."""

    def __init__(self, op: str, builder: Builder) -> None:
        self.op = op
        self.builder = builder
        self.settled = ""  # where to point once the op's function has returned

    def where(self) -> str:
        if self.settled:
            return self.settled
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE) and "/ops/" not in frame.f_code.co_filename:
            frame = frame.f_back
        name, line = frame.f_code.co_filename, frame.f_lineno
        text = linecache.getline(name, line).strip()
        return f"{Path(name).name}:{line}: `{text}`" if text else f"{Path(name).name}:{line}"

    def fail(self, reason: str, remedy: str) -> NoReturn:
        raise TraceError(where=self.where(), op=self.op, reason=reason, remedy=remedy)

    def make(self, call: Callable[[Builder], Node], remedy: str) -> Value:
        self.builder.where = self.where()
        try:
            return Value(call(self.builder))
        except ValueError as error:
            self.fail(str(error), remedy)


@contextmanager
def tracing(tracer: Tracer) -> Iterator[Tracer]:
    token = _tracer.set(tracer)
    try:
        yield tracer
    finally:
        _tracer.reset(token)


def _current() -> Tracer:
    tracer = _tracer.get()
    if tracer is None:
        raise TraceError(
            where="outside any op",
            op="?",
            reason="the language works inside a function decorated with @sc.op",
            remedy="Call the op on tensors instead",
        )
    return tracer


class Value:
    """A traced value: axes by name, a kind (real, complex, int, bool), and Python's operators."""

    __slots__ = ("node",)
    __array_priority__ = 1000

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def axes(self) -> tuple[str, ...]:
        return self.node.axes

    @property
    def kind(self) -> str:
        return self.node.kind

    def __repr__(self) -> str:
        return f"Value({self.node.type})"

    def __bool__(self) -> bool:
        _current().fail(
            "a traced value has no truth value: its numbers are not known while tracing",
            "Use sc.where(condition, x, y), or make the choice an option (a keyword-only bool)",
        )

    def __iter__(self) -> Iterator[Value]:
        _current().fail("a traced value cannot be iterated or unpacked", "Work on whole axes by name")

    def __getitem__(self, index: object) -> Value:
        _current().fail("a traced value cannot be indexed", "Use sc.last(x, axis), sc.shift(x, axis) or sc.where with sc.index(axis)")

    def __add__(self, other: Operand) -> Value:
        return _binary("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return _binary("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return _binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return _binary("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return _binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return _binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return _binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return _binary("div", other, self)

    def __neg__(self) -> Value:
        return _unary("neg", self)

    def __abs__(self) -> Value:
        return _unary("abs", self)

    def __lt__(self, other: Operand) -> Value:
        return _binary("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return _binary("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return _binary("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return _binary("ge", self, other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return _binary("eq", self, other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return _binary("ne", self, other)

    def __and__(self, other: Operand) -> Value:
        return _binary("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return _binary("or", self, other)

    def __invert__(self) -> Value:
        return _unary("not", self)

    __hash__ = object.__hash__

    def __pow__(self, exponent: Operand) -> Value:
        if isinstance(exponent, bool) or not isinstance(exponent, int | float) or exponent not in (-1, 0.5, 1, 2, 3, -0.5):
            _current().fail(
                f"power {exponent!r} is not available", "Powers are -1, -0.5, 0.5, 1, 2 and 3; write exp(p * log(x)) for others"
            )
        table: dict[float, Callable[[Value], Value]] = {
            -1: reciprocal,
            -0.5: rsqrt,
            0.5: sqrt,
            1: lambda x: x,
            2: square,
            3: lambda x: x * square(x),
        }
        return table[exponent](self)


def _value(x: Operand) -> Value:
    if isinstance(x, Value):
        return x
    tracer = _current()
    if isinstance(x, bool | int | float | builtins.complex):
        return Value(tracer.builder.const(x))
    if callable(x):
        tracer.fail(
            "a function is used as a value: a recurrence here is linear, h_t = a_t h_{t-1} + b_t, with a and b not depending on h",
            "Give sc.scan the transition a and the input b; a non-linear recurrence has no associative form and is out of scope",
        )
    if x is None:
        tracer.fail("an absent optional input (None) is used as a value", "Guard its use with `if name is not None`")
    tracer.fail(f"{type(x).__name__} cannot be used as a value", "Values are the op's inputs, numbers, and what the language makes of them")


_WIDEN = "Values combine by axis name; check the axes in the signature"


def _unary(op: str, x: Operand) -> Value:
    node = _value(x).node
    return _current().make(lambda b: b.pointwise(op, node), _WIDEN)


def _binary(op: str, x: Operand, y: Operand) -> Value:
    left, right = _number(x, y).node, _number(y, x).node
    return _current().make(lambda b: b.pointwise(op, left, right), _WIDEN)


def _number(x: Operand, other: Operand) -> Value:
    """x as a value; a whole number beside integers stays an integer."""
    if isinstance(x, int) and not isinstance(x, bool) and isinstance(other, Value) and other.kind == "int":
        return Value(_current().builder.const(x, "int"))
    return _value(x)


def _function(op: str, doc: str) -> Callable[[Operand], Value]:
    def function(x: Operand) -> Value:
        return _unary(op, x)

    function.__name__ = op
    function.__doc__ = doc
    return function


exp = _function("exp", "e^x, real or complex.")
exp2 = _function("exp2", "2^x.")
expm1 = _function("expm1", "e^x - 1, exact near 0.")
log = _function("log", "Natural logarithm.")
log1p = _function("log1p", "log(1 + x), exact near 0.")
sqrt = _function("sqrt", "Square root.")
rsqrt = _function("rsqrt", "1 / sqrt(x).")
reciprocal = _function("reciprocal", "1 / x.")
square = _function("square", "x * x.")
sigmoid = _function("sigmoid", "1 / (1 + e^-x).")
silu = _function("silu", "x sigmoid(x).")
softplus = _function("softplus", "log(1 + e^x), without overflow.")
tanh = _function("tanh", "Hyperbolic tangent.")
sin = _function("sin", "Sine, radians.")
cos = _function("cos", "Cosine, radians.")
relu = _function("relu", "max(x, 0).")
erf = _function("erf", "Error function.")
real = _function("real", "Real part.")
imag = _function("imag", "Imaginary part; 0 for real x.")
conj = _function("conj", "Complex conjugate.")


def gelu(x: Operand) -> Value:
    """x Φ(x), by the error function."""
    v = _value(x)
    return v * (0.5 * erf(v * 0.7071067811865476) + 0.5)


def maximum(x: Operand, y: Operand) -> Value:
    """The larger; NaN if either is NaN."""
    return _binary("maximum", x, y)


def minimum(x: Operand, y: Operand) -> Value:
    """The smaller; NaN if either is NaN."""
    return _binary("minimum", x, y)


def where(condition: Operand, x: Operand, y: Operand) -> Value:
    """x where condition holds, else y; the branch not taken cannot leak NaN into the value."""
    c, a, b = _value(condition).node, _value(x).node, _value(y).node
    return _current().make(lambda build: build.pointwise("where", c, a, b), "Make the condition with a comparison")


def complex(re: Operand, im: Operand) -> Value:  # noqa: A001 - the language's word is the field's
    """re + i im."""
    return _binary("complex", re, im)


def is_complex(x: Operand) -> bool:
    """Whether x is complex: known while tracing, so it may steer ``if``."""
    return _value(x).kind == "complex"


def index(axis: str) -> Value:
    """Positions 0, 1, … along an axis."""
    return _current().make(lambda b: b.index(axis), "Name an axis of an input")


def size(axis: str) -> Value:
    """The number of positions of an axis, as a scalar."""
    return _current().make(lambda b: b.size(axis), "Name an axis of an input")


def sum(x: Operand, axis: str) -> Value:  # noqa: A001 - the language's word is the field's
    """Contraction over one or more named axes, ``"n"`` or ``"p n"``."""
    node = _value(x).node
    return _current().make(lambda b: b.sum(node, tuple(axis.split())), "Sum over axes that the value has")


def mean(x: Operand, axis: str) -> Value:
    """Mean over one named axis."""
    return sum(x, axis) / size(axis)


def shift(x: Operand, axis: str, by: int = 1, fill: float | int = 0) -> Value:
    """x at t - by along ``axis``; ``fill`` where that is before the start (or past the end, by < 0)."""
    node = _value(x).node
    return _current().make(lambda b: b.shift(node, axis, by, fill), "Shift along an axis that the value has")


def scan(
    a: Operand, b: Operand, *, axis: str, initial: Operand = None, reverse: bool = False, exclusive: bool = False, reset: Operand = None
) -> Value:
    """The recurrence h_t = a_t h_{t-1} + b_t along ``axis``; a and b broadcast by name.

    ``initial``    h before the first step (zero when None); any axes but time
    ``reverse``    walk from the last step to the first: h_t = a_t h_{t+1} + b_t
    ``exclusive``  read h_{t-1} (h_{t+1} when reverse) in place of h_t
    ``reset``      a bool value over time: where it holds, the past is forgotten (a zero transition)
    """
    tracer = _current()
    va, vb = _value(a), _value(b)
    if reset is not None:
        va = where(reset, 0.0, va)
    start = None if initial is None else _value(initial).node
    h = tracer.make(
        lambda build: build.scan(va.node, vb.node, start, axis=axis, reverse=reverse),
        "A scan takes a transition, an input and an optional state without the time axis",
    )
    return tracer.make(lambda build: build.prior(h.node), "") if exclusive else h


def last(x: Operand, axis: str) -> Value:
    """The value at the end of ``axis``; of a scan (or its exclusive read) the state after the last step walked."""
    tracer = _current()
    node = _value(x).node
    if node.op == "prior":
        node = node.args[0]
    if node.op == "scan" and node.attrs["axis"] == axis:
        return tracer.make(lambda b: b.final(node), "")
    if axis not in node.axes:
        tracer.fail(f"last along '{axis}', but the value has axes ({' '.join(node.axes)})", "Name an axis that the value has")
    return sum(where(index(axis) == size(axis) - 1, Value(node), 0.0), axis)


def conv(x: Operand, kernel: Operand, *, axis: str, tap: str | None = None, reverse: bool = False) -> Value:
    """Causal convolution y_t = Σ_j k_j x_{t-j} along ``axis``; ``tap`` names the kernel's axis (None: ``axis`` itself)."""
    vx, vk = _value(x).node, _value(kernel).node
    return _current().make(lambda b: b.conv(vx, vk, axis, tap or axis, reverse=reverse), "x needs the axis, the kernel needs the tap axis")


def rms_norm(x: Operand, axis: str, weight: Operand = None, eps: float = 1e-6) -> Value:
    """x / sqrt(mean(x²) + eps), times weight (Zhang & Sennrich 2019)."""
    v = _value(x)
    y = v * rsqrt(mean(square(v), axis) + eps)
    return y if weight is None else y * weight


def discretize(dt: Operand, A: Operand, B: Operand, method: str = "zoh") -> tuple[Value, Value]:
    """Continuous h' = A h + B u to discrete (a, b) for a step dt: h_t = a h_{t-1} + b u_t.

    ``mamba``     a = e^{dt A},                       b = dt B                   (Gu & Dao 2023, §2 and their code)
    ``zoh``       a = e^{dt A},                       b = (e^{dt A} - 1)/A B     (S4D, Gu et al. 2022, eq. 2); expm1, a series near A = 0
    ``bilinear``  a = (1 + dt A/2)/(1 - dt A/2),      b = dt/(1 - dt A/2) B      (S4, Gu et al. 2021, eq. 3)
    ``euler``     a = 1 + dt A,                       b = dt B
    ``dirac``     a = e^{dt A},                       b = B                      (S5's discrete input)
    """
    d, A_, B_ = _value(dt), _value(A), _value(B)
    x = d * A_
    if method == "mamba":
        return exp(x), d * B_
    if method == "dirac":
        return exp(x), B_
    if method == "euler":
        return 1.0 + x, d * B_
    if method == "bilinear":
        half = 0.5 * x
        scale = 1.0 / (1.0 - half)
        return (1.0 + half) * scale, d * scale * B_
    if method == "zoh":
        return exp(x), d * _phi1(x) * B_
    _current().fail(f"discretize has no method '{method}'", "Methods are mamba, zoh, bilinear, euler, dirac")


def _phi1(x: Value) -> Value:
    """(e^x - 1)/x, with its series near 0 where the quotient would be 0/0; in both branches the unused side is kept finite."""
    if x.kind == "complex":
        small = real(x) * real(x) + imag(x) * imag(x) < 1e-2
        safe = where(small, 1.0, x)
        return where(small, _phi1_series(where(small, x, 0.0), 9), (exp(safe) - 1.0) / safe)
    small = abs(x) < 1e-2
    safe = where(small, 1.0, x)
    return where(small, _phi1_series(x, 5), expm1(safe) / safe)


def _phi1_series(x: Value, degree: int) -> Value:
    """Σ x^k/(k+1)!, to the last term that matters in double precision: there is no complex expm1, so that one begins further out."""
    result: Value = 1.0 / math.factorial(degree + 1) * x + 1.0 / math.factorial(degree)
    for k in range(degree - 1, 0, -1):
        result = result * x + 1.0 / math.factorial(k)
    return result


def op(function: Callable[..., Any] | None = None, *, groups: dict[str, str] | None = None) -> Any:
    """Makes a DSL function an op: callable on tensors, with ``.graph``, ``.forms``, ``.step``, ``.reference``.

    ``groups`` says which axis a group axis divides; by default ``g`` divides ``h`` where an input has it, else ``d``.
    """
    from scanc.op import Op

    return Op(function, groups=groups) if function is not None else (lambda f: Op(f, groups=groups))
