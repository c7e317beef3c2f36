"""``scanc show``: what the compiler makes of an op, stage by stage, for any target, with no such device here."""

from __future__ import annotations

from typing import Annotated

import typer

from scanc.cli.common import Json, console, find_op, parse_case, parse_schedule, print_json
from scanc.errors import ArgumentError, UnsupportedForm
from scanc.target import Target


def show(op: Annotated[str, typer.Argument(help="An op's name; your own as file.py:name.")],
         stage: Annotated[str, typer.Option(help="One stage's name, or all.")] = "all",
         target: Annotated[str, typer.Option(help="As in cuda:sm_90:triton; need not be here.")] = "cpu:native:cpp",
         pass_: Annotated[str, typer.Option("--pass", help="forward, backward or step.")] = "forward",
         form: Annotated[str | None, typer.Option(help="One of the op's forms.", show_default=False)] = None,
         schedule: Annotated[str | None, typer.Option(help="Fields to change, as in 'lanes=64, tile=32', or a schedule as it prints.",
                                                      show_default=False)] = None,
         case: Annotated[str | None, typer.Option(help="Sizes, as in b=1,d=64,l=128; the op's first case when left out.",
                                                  show_default=False)] = None,
         dtype: Annotated[str, typer.Option(help="Of the tensors over time.")] = "float32",
         json: Json = False) -> None:
    """Print an op at each stage of the compiler: the graph as written, canonical, its class and forms, the source, the machine code.

    Examples:

        scanc show selective_scan --stage canonical

        scanc show ssd --stage source --target cuda:sm_90:triton --pass backward

        scanc show selective_scan --stage asm --target cuda:sm_90:cuda --schedule 'lanes=64, split=2'
    """
    texts = stage_texts(op, target, pass_, form, schedule, case, dtype)
    if stage != "all":
        if stage not in texts:
            raise ArgumentError(op=op, argument="--stage", value=f"'{stage}'", limit=f"stages are {', '.join(texts)}, or all",
                                remedy="Choose one of them.")
        texts = {stage: texts[stage]}
    if json:
        print_json(texts)
        return
    for name, text in texts.items():
        if len(texts) > 1:
            console.rule(name, align="left")
        print(text.rstrip("\n"))


def stage_texts(op: str, target: str, pass_: str, form: str | None, schedule: str | None, case: str | None, dtype: str) -> dict[str, str]:
    """{stage: text} for what the command line asks."""
    import torch

    from scanc.compiler import default_schedule, forms_of, stages
    from scanc.problem import Problem

    definition = find_op(op)
    aim = Target.parse(target)
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ArgumentError(op=op, argument="--dtype", value=f"'{dtype}'", limit="it must be a dtype of torch", remedy="Try bfloat16.")
    sizes = parse_case(case) if case is not None else dict(definition.cases[0]) if definition.cases else {}
    problem = Problem.of(definition, sizes or dict.fromkeys(_axes(op), 16), dtype, pass_)
    graph = problem.graph()
    if aim.backend == "reference":
        return stages(graph, aim, None)
    forms = forms_of(graph)
    if form is not None and form not in forms:
        raise UnsupportedForm("its class has none", op=op, form=form, forms=", ".join(forms) or "the reference alone")
    chosen = default_schedule(graph, aim, problem.sizes, form)
    return stages(graph, aim, parse_schedule(schedule, chosen) if schedule is not None else chosen)


def _axes(op: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(axis for a in find_op(op).arguments for axis in a.alternatives[0].axes))
