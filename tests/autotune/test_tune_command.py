"""``scanc tune`` on the processor of this machine: real kernels, a user's own op, and the call that uses the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scanc import cli, runtime
from scanc.autotune.records import Record, RecordStore
from scanc.codegen import build_cpp
from scanc.schedule import RecurrentSchedule

ROOT = Path(runtime.__file__).parents[1]

OP = """
import scanc.dsl as sc
from jaxtyping import Float
from torch import Tensor

@sc.op
def leaky_sum(x: Float[Tensor, "b d l"], gate: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
    return sc.scan(sc.sigmoid(gate), x, axis="l")
"""

TUNE = """
from scanc.autotune import tune
from scanc.problem import Problem
from scanc.target import Target
found = tune([Problem.of("leaky_sum", {"b": 1, "d": 32, "l": 64})], target=Target.parse("cpu:native:cpp"), budget_s=2.0, progress=False)
print(found[0].line)
"""

CALL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from my_op import leaky_sum
from scanc import compiler
used = []
made = compiler.Executable.__init__
def watched(self, graph, target, schedule):
    used.append(schedule)
    made(self, graph, target, schedule)
compiler.Executable.__init__ = watched
leaky_sum(torch.randn(1, 32, 60), torch.randn(1, 32, 60))
print(repr(used[0]))
assert "optuna" not in sys.modules
"""


def command(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, "SCANC_CACHE": str(cache), "SCANC_LOG": "warning"},
                          capture_output=True, text=True, timeout=280)


needs_compiler = pytest.mark.usefixtures("cpp")


@pytest.fixture
def cpp() -> None:
    assert build_cpp.available(), "these tests need a C++ compiler: apt-get install g++"


@needs_compiler
def test_tuning_a_users_op_changes_what_its_calls_use(tmp_path: Path) -> None:
    source = tmp_path / "my_op.py"
    source.write_text(OP)
    tune = ("-m", "scanc", "tune", f"{source}:leaky_sum", "--case", "b=1,d=32,l=64", "--pass", "forward", "--budget")
    done = command(*tune, "4", "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    best = Record.from_json(json.loads(done.stdout)[0])
    assert best.ok and best.best and best.error["y"] < 5e-6
    kept = RecordStore(tmp_path / "tuning").records(best.device, "leaky_sum")
    assert kept[-1] == best and len(kept) >= 2
    called = command("-c", CALL, str(tmp_path), cache=tmp_path)
    assert called.returncode == 0, called.stderr
    used = eval(called.stdout, {"RecurrentSchedule": RecurrentSchedule})
    assert used == best.parsed()
    # The second time everything is on record.
    again = command(*tune, "0", cache=tmp_path)
    assert again.returncode == 0 and "schedule=RecurrentSchedule(" in again.stdout


@needs_compiler
def test_a_script_that_tunes_its_own_op(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OP + TUNE)
    done = command(str(script), cache=tmp_path)
    assert done.returncode != 0 and 'if __name__ == "__main__"' in done.stderr  # the worker runs the file too
    script.write_text(OP + "if __name__ == '__main__':" + TUNE.replace("\n", "\n    "))
    done = command(str(script), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("schedule=RecurrentSchedule(")


@pytest.mark.parametrize(("words", "code", "says"), [
    (["nope"], 2, "ops are"), (["ssd", "--case", "b=0"], 2, "case"), (["ssd", "--pass", "sideways"], 2, "a pass is one of"),
    (["ssd", "--effort", "heroic", "--case", "b=1,l=8,h=2,p=4,n=4"], 2, "quick, full"), (["ssd", "--target", "gpu"], 2, "three parts"),
    (["linear_recurrence", "--dtype", "int32", "--case", "b=1,d=4,l=8"], 2, "float32, bfloat16 or float16"),
    (["linear_recurrence", "--target", "cuda:sm_61:cuda", "--case", "b=1,d=4,l=8"], 1, "--screen")])
def test_bad_usage_is_named(words: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scanc", "tune", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert says in capsys.readouterr().err
