"""The command ``scanc``: one file a command, this one puts them together.

Exit codes: 0 done; 1 something fell short (a wrong kernel, a missing compiler); 2 bad usage (an unknown op, target, stage or option);
130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from scanc.cli.bench import bench
from scanc.cli.check import check
from scanc.cli.demo import demo
from scanc.cli.doctor import doctor
from scanc.cli.list import list_ops
from scanc.cli.report import report
from scanc.cli.show import show
from scanc.cli.tune import tune
from scanc.errors import ArgumentError, ScancError, ScheduleError, TargetError, UnsupportedForm

app = typer.Typer(
    name="scanc", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    help="Compiles linear recurrences, written once, into every form, and finds the fastest for this machine by measuring.",
    epilog="Start with `scanc doctor`. Settings: SCANC_CACHE (folder), SCANC_LOG (level), SCANC_TARGET (override).",
)
for name, command in (("doctor", doctor), ("list", list_ops), ("show", show), ("tune", tune), ("check", check), ("bench", bench),
                      ("report", report), ("demo", demo)):
    app.command(name)(command)

# What a caller asked for cannot be had, whatever the machine.
BAD_USAGE = (ArgumentError, TargetError, UnsupportedForm, ScheduleError)


def main() -> None:
    """Runs the command line; an error of scanc's own is one line on stderr."""
    try:
        app()
    except ScancError as error:
        print(f"scanc: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BAD_USAGE) else 1)
    except KeyboardInterrupt:
        print("scanc: interrupted", file=sys.stderr)
        sys.exit(130)
