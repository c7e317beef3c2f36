"""``python -m scanc.dropin SCRIPT ARGS`` and ``python -m scanc.dropin -m MODULE ARGS``: runs a program with the drop-in installed.

As ``python SCRIPT ARGS`` would: sys.argv, sys.path and __name__ are what the program expects.
"""

from __future__ import annotations

import os
import runpy
import sys

from scanc import dropin

USAGE = """usage: python -m scanc.dropin SCRIPT [ARGS ...]
       python -m scanc.dropin -m MODULE [ARGS ...]

Runs a program written for mamba_ssm or causal_conv1d, unmodified, on scanc. Examples:

    python -m scanc.dropin train.py --steps 100
    python -m scanc.dropin -m pytest tests/ops/test_selective_scan.py
"""


def main(argv: list[str]) -> int:
    as_module = argv[:1] == ["-m"]
    rest = argv[1:] if as_module else argv
    if not rest or rest[0] in ("-h", "--help") or (rest[0].startswith("-") and not as_module):
        asked = bool(rest) and rest[0] in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return 0 if asked else 2
    if not as_module and not os.path.exists(rest[0]):
        sys.stderr.write(f"there is no file '{rest[0]}'\n{USAGE}")
        return 2
    dropin.install()
    sys.argv = list(rest)
    if as_module:
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(rest[0]))
        runpy.run_path(rest[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
