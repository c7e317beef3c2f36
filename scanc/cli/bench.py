"""``scanc bench``: how fast the ops are here, beside their floors and their rivals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scanc.cli.common import (
    PASSES,
    Json,
    OptionalOp,
    TargetName,
    find_op,
    load_ops,
    parse_dtypes,
    parse_forms,
    parse_passes,
    print_json,
    print_table,
)
from scanc.target import Target


def bench(op: OptionalOp = None, target: TargetName = None,
          pass_: Annotated[str, typer.Option("--pass", help="Some of forward, backward, step, joined by commas.")] = ",".join(PASSES),
          form: Annotated[str | None, typer.Option(help="Some of the forms that `scanc list` shows, joined by commas.",
                                                   show_default=False)] = None,
          dtype: Annotated[str | None, typer.Option(help="Of float32, float16, bfloat16; on a GPU bfloat16, else float32.",
                                                    show_default=False)] = None,
          quick: Annotated[bool, typer.Option("--quick", help="One small case of each op, timed briefly.")] = False,
          sweep: Annotated[bool, typer.Option("--sweep", help="Every size with a recorded time of a rival, not the op's cases.")] = False,
          out: Annotated[Path | None, typer.Option(help="Folder of result files; perf/results in a checkout, else in the cache folder.",
                                                   show_default=False)] = None,
          json: Json = False) -> None:
    """Time every op's cases in every pass, form and backend; check them in the same run; keep the rows for `scanc report`.

    Exits with 1 where a kernel is wrong or does not compile.

    Examples:

        scanc bench --quick

        scanc bench selective_scan

        scanc bench ssd --target cuda:sm_90:triton --json

        scanc bench ssd --pass forward,backward --form chunked

        scanc bench fft_conv --dtype float16,float32

        scanc bench selective_scan --sweep --quick --target cuda:sm_90:cuda
    """
    import torch

    from scanc.perf.report import table_row
    from scanc.perf.results import merge_rows, results_path
    from scanc.perf.suite import bench as run
    from scanc.runtime import device_name

    names = [find_op(op).name] if op is not None else sorted(load_ops())
    aim = Target.parse(target) if target is not None else None
    device = device_name(aim.device_type if aim is not None else "cuda" if torch.cuda.is_available() else "cpu")
    forms = parse_forms(form) if form is not None else None
    dtypes = parse_dtypes(dtype) if dtype is not None else None
    path = results_path(device, out)
    rows = []
    for row in run(names, aim, quick, passes=parse_passes(pass_), forms=forms, dtypes=dtypes, sweep=sweep,
                   tell=lambda line: print(line, file=sys.stderr)):
        rows.append(row)
        merge_rows(path, [row], device)  # at once: what was measured stays, whatever comes next
    if json:
        print_json(rows)
    else:
        words = [table_row(r) for r in rows]
        print_table(device, ("op", "case", "pass", "form", "backend", "ms", "floor ms", "of floor", "rival", "rival ms", "error", "status"),
                    [(w["op"], w["case"], w["pass"], w["form"], w["backend"], w["ms"], w["floor"], w["share"], w["peer"], w["peer_ms"],
                      w["error"], w["status"]) for w in words])
        print(f"{len(rows)} rows in {path}")
    if any(r["status"] != "ok" for r in rows):
        raise typer.Exit(1)
