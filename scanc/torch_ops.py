"""Every op as ``torch.ops.scanc.<op>``, by one path from the graph.

For an op ``f`` four torch ops are registered, each with schema, CPU and CUDA kernels, and a fake kernel from the axes:

    f(tensors..., *, options) -> results                                           autograd from the adjoint; an autocast rule
    f_training(tensors..., int every, *, options) -> (results..., checkpoints)     f, leaving its states before every so many steps
    f_backward(cotangents..., tensors..., bool[] needs, Tensor[] checkpoints, int every, *, options) -> gradients
                                                                                   differentiable through the reference
    f_step(state!, tensors without time..., *, options) -> results of one step     the state is overwritten in place

Where ``f``'s gradients are wanted and sizes are known, autograd calls ``f_training``, and its checkpoints go to ``f_backward``: so under
torch.compile, too, the backward need not walk time once more. With sizes that stay open it has none.

Autocast: inputs over time are cast to the autocast dtype, parameters and states are left alone.
float64 tensors run through the reference, as does what no kernel can do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _after_autograd_keyset, _AutoDispatchBelowAutograd, _ExcludeDispatchKeyGuard
from torch.utils._python_dispatch import _disable_current_modes

from scanc.codegen.layout import checkpoint_names
from scanc.eager import Again, Recall, is_plain
from scanc.errors import ArgumentError
from scanc.ir import Graph
from scanc.launch import dense_strides, lies_as

if TYPE_CHECKING:
    from scanc.op import Op, Option

_libraries: dict[str, torch.library.Library] = {}
_SCHEMA_TYPE = {bool: "bool", int: "int", float: "float", str: "str"}


# -- what the kernels share ---------------------------------------------------------------------------------------------------


def check_sizes(op: str, graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of all axes. Raises ArgumentError on axes that disagree, groups that do not divide, or tensors of several devices."""
    sizes: dict[str, Any] = {}
    first: dict[str, str] = {}
    device: tuple[str, torch.device] | None = None
    for node in graph.inputs:
        name = str(node.name)
        t = tensors[name]
        if device is None:
            device = (name, t.device)
        elif t.device != device[1]:
            raise ArgumentError(
                op=op, argument=name, value=f"on {t.device}", limit=f"'{device[0]}' is on {device[1]}", remedy="Move both to one device."
            )
        for axis, size in zip(node.axes, t.shape, strict=True):
            if axis not in sizes:
                sizes[axis], first[axis] = size, name
            elif sizes[axis] != size:
                raise ArgumentError(
                    op=op,
                    argument=name,
                    value=f"of shape {tuple(t.shape)} over ({' '.join(node.axes)})",
                    limit=f"axis {axis} is {sizes[axis]} in '{first[axis]}'",
                    remedy="Make the sizes of that axis agree.",
                )
    for group, parent in graph.groups.items():
        if group in sizes and parent in sizes and (sizes[group] == 0 or sizes[parent] % sizes[group] != 0):
            raise ArgumentError(
                op=op,
                argument=first[group],
                value=f"with {sizes[group]} groups",
                limit=f"groups must divide {parent} = {sizes[parent]}",
                remedy=f"Choose a number of groups that divides {parent}.",
            )
    return sizes


def finish_dtype(graph: Graph, output: Any, x: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    from scanc.compiler import result_dtype

    return x.to(result_dtype(graph, output.name, inputs)).contiguous()


def in_order_of(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient, or another tensor like x, in memory as x is (torch.empty_like's strides), copied only where it is not already."""
    if x.is_contiguous() and gradient.is_contiguous():
        return gradient
    wanted = dense_strides(x)
    if all(s == w or n == 1 for s, w, n in zip(gradient.stride(), wanted, x.shape, strict=True)):
        return gradient
    return torch.empty_like(x).copy_(gradient)


def bind_call(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor | None], dict[str, Option]]:
    """Tensors and options by name, as the schema orders them."""
    names = [a.name for a in op.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return {n: given.get(n) for n in names}, {k: given.get(k, d) for k, d in op.options.items()}


def _present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if v is not None}


def _empty(graph: Graph, name: str, sizes: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Tensor:
    from scanc.compiler import result_dtype

    like = lies_as(graph, graph.output(name))
    if like:
        return torch.empty_like(inputs[like], dtype=result_dtype(graph, name, inputs))
    device = next(iter(inputs.values())).device
    return torch.empty([sizes[a] for a in graph.output(name).axes], dtype=result_dtype(graph, name, inputs), device=device)


def keeps_graph() -> bool:
    """Within a backward that autograd runs: whether what was saved for it may be asked for again (``retain_graph``)."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


class _Training(torch.autograd.Function):
    """A call that gradients are wanted of: its forward leaves checkpoints for its backward, where it can.

    ``traced``: through torch's own ops, so that whatever traces or transforms the call sees them; else straight to the kernels.
    """

    @staticmethod
    def forward(ctx: Any, op: _Registration, options: dict[str, Option], traced: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        by_name = dict(zip(op.names, tensors, strict=True))
        ctx.wanted = op.wanted(by_name, ctx.needs_input_grad[3:])
        made, checkpoints, ctx.every = (op.traced_training if traced else op.dispatch.training)(by_name, options, ctx.wanted)
        ctx.op, ctx.options, ctx.traced = op, options, traced
        ctx.present, ctx.left = [t is not None for t in tensors], tuple(checkpoints)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(t for t in tensors if t is not None), *checkpoints.values())
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        op: _Registration = ctx.op
        saved = iter(ctx.saved_tensors)
        tensors = {name: next(saved) if there else None for name, there in zip(op.names, ctx.present, strict=True)}
        checkpoints = dict(zip(ctx.left, saved, strict=True))
        if all(c is None for c in cotangents):
            return (None,) * (3 + len(tensors))
        if ctx.traced or torch.is_grad_enabled():
            if torch.is_grad_enabled():  # gradients of gradients may be wanted, and nobody differentiates checkpoints
                checkpoints = {}
            needs, every = [name in ctx.wanted for name in op.names], ctx.every if checkpoints else 0
            made = op.gradients(cotangents, list(tensors.values()), needs, list(checkpoints.values()), every, ctx.options)
            return (None, None, None, *made)
        found = op.dispatch.backward(cotangents, tensors, ctx.wanted, ctx.options, checkpoints, ctx.every, last=not keeps_graph())
        placed = (in_order_of(t, found[f"d_{n}"]) if t is not None and f"d_{n}" in found else None for n, t in tensors.items())
        return (None, None, None, *placed)


# -- one op's registration ------------------------------------------------------------------------------------------------------


class _Registration:
    """Builds the four torch ops of one DSL op."""

    def __init__(self, op: Op, library: torch.library.Library) -> None:
        from scanc import dispatch

        self.op, self.library = op, library
        self.names = [a.name for a in op.arguments]
        self.dispatch = dispatch.Dispatcher(op)
        self.recall = Recall()
        options = "".join(f", {_SCHEMA_TYPE[type(d)]} {k}={_schema_default(d)}" for k, d in op.options.items())
        self.option_text = f", *{options}" if options else ""
        self.option_types = [type(d) for d in op.options.values()]
        self.state = next((a.name for a in op.arguments if a.name.startswith("initial_state")), "")
        self.step_names = ["state", *(n for n in self.names if n != self.state)]
        self.differentiable = [a.name for a in op.arguments if a.alternatives[0].kind in ("real", "complex")]

    def all(self) -> None:
        self._forward()
        self._training()
        self._backward()
        self._step()

    def _tensor_list(self, skip: str = "", all_optional: bool = False) -> str:
        parts = []
        for a in self.op.arguments:
            if a.name != skip:
                parts.append(f"Tensor? {a.name}" + ("" if all_optional else "=None") if a.optional else f"Tensor {a.name}")
        return ", ".join(parts)

    def _define(self, name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        self.library.impl(name, run, "CPU")
        self.library.impl(name, run, "CUDA")
        torch.library.register_fake(f"scanc::{name}", fake, lib=self.library)

    # plain eager calls, which need no dispatcher

    def plain_forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the op returns, or None for a call that torch has a say in."""
        values = (*args, *kwargs.values())
        again = self.recall.find(values, "forward", len(args), *kwargs)
        if again is not None:
            return again(values)
        bound = self._plain(self.names, args, kwargs, gradients=True)
        if bound is None:
            return None
        tensors, options = bound
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors.values()):
            made = _Training.apply(self, options, False, *tensors.values())
        else:
            made = self.dispatch.forward(tensors, options)
            direct = self.dispatch.again("forward", (*self.names[: len(args)], *kwargs), tensors, options, len(self.op.results) > 1)
            self.recall.keep(direct, values, "forward", len(args), *kwargs)
        return tuple(made) if len(self.op.results) > 1 else made[0]

    def plain_step(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        values = (*args, *kwargs.values())
        again = self.recall.find(values, "step", len(args), *kwargs)
        if again is not None:
            return again(values)
        bound = self._plain(self.step_names, args, kwargs)
        held = bound[0].pop("state") if bound is not None else None
        if bound is None or held is None:
            return None
        made = self.dispatch.step(self.state, held, *bound)
        self.recall.keep(self.again_step((*self.step_names[: len(args)], *kwargs), held, *bound), values, "step", len(args), *kwargs)
        return tuple(made) if len(made) > 1 else made[0]

    def again_step(
        self, names: Sequence[str], held: Tensor, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option]
    ) -> Again | None:
        """A step that was taken, as a function of values that ``names`` names and of which it reads but the addresses."""
        places = [self.state if name == "state" else name for name in names]
        many = sum(self.dispatch.is_timed(axes) for axes in self.op.results) > 1
        return self.dispatch.again("step", places, tensors, options, many, held, self.state)

    def _plain(
        self, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], *, gradients: bool = False
    ) -> tuple[dict[str, Tensor | None], dict[str, Option]] | None:
        """Tensors and options of a plain call; None for any other, a malformed one included: torch has words for that."""
        given = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
        if len(given) != len(args) + len(kwargs) or not given.keys() <= {*names, *self.op.options}:
            return None
        tensors = {n: given.get(n) for n in names}
        options = {k: given.get(k, d) for k, d in self.op.options.items()}
        if [type(v) for v in options.values()] != self.option_types or not is_plain(tensors.values(), gradients=gradients):
            return None
        return tensors, options

    # forward

    def _forward(self) -> None:
        op, name = self.op, self.op.name
        many = len(op.results) > 1
        returns = "(" + ", ".join("Tensor" for _ in op.results) + ")" if many else "Tensor"

        def outputs(made: list[Tensor]) -> Any:
            return tuple(made) if many else made[0]

        def run(*args: Any, **kwargs: Any) -> Any:
            tensors, options = bind_call(op, args, kwargs)
            return outputs(self.dispatch.forward(tensors, options))

        def fake(*args: Any, **kwargs: Any) -> Any:
            tensors, options = bind_call(op, args, kwargs)
            graph = op.graph_of(op.bind(tensors, options))
            given = _present(tensors)
            sizes = check_sizes(name, graph, given)
            return outputs([_empty(graph, o.name, sizes, given) for o in graph.outputs])

        def differentiable(keys: DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
            tensors, options = bind_call(op, args, kwargs)
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors.values()):
                return outputs(list(_Training.apply(self, options, True, *tensors.values())))
            with _AutoDispatchBelowAutograd():
                return getattr(torch.ops.scanc, name).default.redispatch(keys & _after_autograd_keyset, *args, **kwargs)

        self._define(name, f"({self._tensor_list()}{self.option_text}) -> {returns}", run, fake)
        self.library.impl(name, differentiable, "Autograd", with_keyset=True)
        for device in ("CPU", "CUDA"):
            self.library.impl(name, self._autocast(device), f"Autocast{device}")

    # forward, for a backward

    def traced_training(
        self, tensors: Mapping[str, Tensor | None], options: Mapping[str, Option], wanted: tuple[str, ...]
    ) -> tuple[list[Tensor], dict[str, Tensor], int]:
        """``Dispatcher.training`` by torch's own ops. Open sizes and exported programs, which are for inference, leave no checkpoints."""
        ops, known = torch.ops.scanc, all(isinstance(s, int) for t in tensors.values() if t is not None for s in (*t.shape, *t.stride()))
        every = 0
        if known and not torch.compiler.is_exporting():
            with _disable_current_modes():  # what programs keep is real, though the tensors may not be
                every = self.dispatch.interval(tensors, options, wanted)
        if not every:
            made = getattr(ops, self.op.name)(**tensors, **options)
            return list(made) if isinstance(made, tuple | list) else [made], {}, 0
        *results, left = getattr(ops, self.op.name + "_training")(*tensors.values(), every, **options)
        return results, dict(zip(checkpoint_names(len(left)), left, strict=True)), every

    def _training(self) -> None:
        op, name = self.op, self.op.name + "_training"

        def run(*args: Any, **options: Any) -> Any:
            made, left = self.dispatch.leave(dict(zip(self.names, args[:-1], strict=True)), options, args[-1])
            return (*made, list(left.values()))

        def fake(*args: Any, **options: Any) -> Any:
            tensors = dict(zip(self.names, args[:-1], strict=True))
            with _disable_current_modes():
                left = self.dispatch.left(tensors, options, args[-1])
            made = getattr(torch.ops.scanc, op.name)(**tensors, **options)
            first = next(iter(_present(tensors).values()))
            return (*(made if isinstance(made, tuple | list) else (made,)), [first.new_empty(s, dtype=dtype) for s, dtype in left])

        returns = ", ".join(["Tensor"] * len(op.results))
        self._define(name, f"({self._tensor_list(all_optional=True)}, int every{self.option_text}) -> ({returns}, Tensor[])", run, fake)

    def _autocast(self, device: str) -> Callable[..., Any]:
        op = self.op
        key = getattr(DispatchKey, f"Autocast{device}")

        def run(*args: Any, **kwargs: Any) -> Any:
            tensors, options = bind_call(op, args, kwargs)
            graph = op.graph_of(op.bind(tensors, options))
            dtype = torch.get_autocast_dtype(device.lower())
            for node in graph.inputs:
                t = tensors[str(node.name)]
                if node.kind == "real" and graph.time in node.axes and t is not None and t.dtype != torch.float64:
                    tensors[str(node.name)] = t.to(dtype)
            with _ExcludeDispatchKeyGuard(DispatchKeySet(key)):
                made = self.plain_forward((), {**tensors, **options})
                return made if made is not None else getattr(torch.ops.scanc, op.name)(**tensors, **options)

        return run

    def gradients(
        self,
        cotangents: Sequence[Tensor | None],
        inputs: Sequence[Tensor | None],
        needs: Sequence[bool],
        checkpoints: Sequence[Tensor],
        every: int,
        options: Mapping[str, Option],
    ) -> tuple[Tensor | None, ...]:
        """A gradient for each input that needs one, through the backward's own torch op: gradients of gradients go on from there."""
        run = getattr(torch.ops.scanc, self.op.name + "_backward")
        made = run(*cotangents, *inputs, list(needs), list(checkpoints), every, **options)
        found = dict(zip(self.differentiable, made if isinstance(made, tuple | list) else (made,), strict=True))
        return tuple(found[n] if need and n in found else None for n, need in zip(self.names, needs, strict=True))

    # backward

    def _split_backward(self, args: Sequence[Any]) -> tuple[list[Tensor | None], dict[str, Tensor | None], list[bool]]:
        """Cotangents, inputs and which of these need a gradient."""
        count, end = len(self.op.results), len(self.op.results) + len(self.names)
        return list(args[:count]), dict(zip(self.names, args[count:end], strict=True)), list(args[end])

    def _backward(self) -> None:
        op, name = self.op, self.op.name + "_backward"
        cotangents = ", ".join(f"Tensor? d_{i}" for i in range(len(op.results)))
        returns = "(" + ", ".join("Tensor" for _ in self.differentiable) + ")" if len(self.differentiable) > 1 else "Tensor"

        def place(made: Mapping[str, Tensor], like: Tensor) -> Any:
            full = [made[f"d_{n}"] if f"d_{n}" in made else like.new_empty(0) for n in self.differentiable]
            return tuple(full) if len(full) > 1 else full[0]

        def run(*args: Any, **options: Any) -> Any:
            given, tensors, needs = self._split_backward(args)
            *_, left, every = args
            checkpoints = dict(zip(checkpoint_names(len(left)), left, strict=True))
            made = self.dispatch.backward(given, tensors, self.wanted(tensors, needs), options, checkpoints, every)
            present = _present(tensors)
            return place({k: in_order_of(present[k.removeprefix("d_")], g) for k, g in made.items()}, next(iter(present.values())))

        def fake(*args: Any, **options: Any) -> Any:
            _, tensors, needs = self._split_backward(args)
            wanted = self.wanted(tensors, needs)
            first = next(iter(_present(tensors).values()))
            return place(
                {f"d_{n}": torch.empty_like(t) for n, t in _present(tensors).items() if n in wanted},
                first,
            )

        schema = f"({cotangents}, {self._tensor_list(all_optional=True)}, bool[] needs, Tensor[] checkpoints, int every"
        schema += f"{self.option_text}) -> {returns}"
        self._define(name, schema, run, fake)
        torch.library.register_autograd(f"scanc::{name}", self._second_gradient, setup_context=self._remember_backward, lib=self.library)

    def wanted(self, tensors: Mapping[str, Tensor | None], needs: Sequence[bool]) -> tuple[str, ...]:
        return tuple(n for n, need in zip(self.names, needs, strict=True) if need and n in self.differentiable and tensors[n] is not None)

    def _remember_backward(
        self, ctx: Any, inputs: Sequence[Any], keyword_only_inputs: Mapping[str, Any] | None = None, output: Any = None
    ) -> None:
        ctx.set_materialize_grads(False)
        *tensors, needs, checkpoints, _ = inputs
        ctx.needs, ctx.left = list(needs), len(checkpoints)
        ctx.present = [t is not None for t in tensors]
        ctx.options = dict(keyword_only_inputs or {})
        ctx.save_for_backward(*(t for t in tensors if t is not None))

    def _second_gradient(self, ctx: Any, *grads: Tensor | None) -> Any:
        """The derivative of the backward: the adjoint of the adjoint, evaluated by the reference."""
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if there else None for there in ctx.present]
        count = len(self.op.results)
        tensors = dict(zip(self.names, inputs[count:], strict=True))
        wanted = self.wanted(tensors, ctx.needs)
        by_name = {f"d_{n}": g for n, g in zip(self.differentiable, grads, strict=True) if g is not None and n in wanted}
        made = self.dispatch.second(inputs[:count], tensors, wanted, by_name, ctx.options, ctx.needs_input_grad)
        return (*(made.get(i) for i in range(len(inputs))), None, [None] * ctx.left, None)

    # step

    def _step(self) -> None:
        op, name, state = self.op, self.op.name + "_step", self.state
        timed = [i for i, axes in enumerate(op.results) if self.dispatch.is_timed(axes)]
        op.has_step = bool(state and timed)
        if not op.has_step:
            return
        rest = self.step_names[1:]
        returns = "(" + ", ".join("Tensor" for _ in timed) + ")" if len(timed) > 1 else "Tensor"

        def bind(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor | None], dict[str, Option]]:
            given = dict(zip(self.step_names, args, strict=False)) | dict(kwargs)
            options = {k: given.get(k, d) for k, d in op.options.items()}
            return given["state"], {n: given.get(n) for n in rest}, options

        def outputs(made: list[Tensor]) -> Any:
            return tuple(made) if len(timed) > 1 else made[0]

        def run(*args: Any, **kwargs: Any) -> Any:
            held, tensors, options = bind(args, kwargs)
            return outputs(self.dispatch.step(state, held, tensors, options))

        def fake(*args: Any, **kwargs: Any) -> Any:
            held, tensors, options = bind(args, kwargs)
            graph = self.dispatch.step_graph(state, held, tensors, options)
            given = _present({**tensors, state: held})
            sizes = check_sizes(name, graph, given)
            return outputs([_empty(graph, o.name, sizes, given) for o in graph.outputs if o.name not in graph.inplace])

        self._define(name, f"(Tensor(a!) state, {self._tensor_list(skip=state)}{self.option_text}) -> {returns}", run, fake)


def _schema_default(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


def register(op: Op) -> _Registration:
    """Registers (or, when a notebook defines an op again, replaces) the torch ops of a DSL op."""
    old = _libraries.pop(op.name, None)
    if old is not None:
        old._destroy()
    library = torch.library.Library("scanc", "FRAGMENT")
    _libraries[op.name] = library
    made = _Registration(op, library)
    made.all()
    return made


__all__ = ["bind_call", "check_sizes", "finish_dtype", "register"]
