"""The package as others get it: a wheel, installed elsewhere, with the command; and the files that pin and describe it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist", "tests", "docs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind in the tree it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_every_module_and_its_data_under_scanc(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("ops", "autotune", "models", "perf"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"scanc/{path.relative_to(ROOT)}" in names
    for path in (p for p in (ROOT / "scanc").rglob("*") if p.suffix in (".py", ".h") or p.name == "py.typed"):
        assert str(path.relative_to(ROOT)) in names
    data = [*(ROOT / "perf").rglob("*.json"), *(ROOT / "perf" / "templates").iterdir(), *(ROOT / "autotune" / "bundled").rglob("*.json")]
    for path in data:
        assert f"scanc/{path.relative_to(ROOT)}" in names
    assert {n.split("/")[0] for n in names if "dist-info" not in n} == {"scanc"}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_installed_wheel_runs_far_from_the_sources(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment with the wheel and, through a .pth file, this one's dependencies; nothing of the checkout."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A plain folder on the path: this environment's own .pth files, and with them an editable scanc, are not read.
    (site / "dependencies.pth").write_text("".join(sysconfig.get_path(kind) + "\n" for kind in ("purelib", "platlib")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    code = "import scanc.ops, scanc.perf.report as r, json; print(json.dumps([scanc.__file__, scanc.ops.__file__, r.__file__]))"
    ran = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(Path(p).is_relative_to(site) for p in json.loads(ran.stdout))
    helped = subprocess.run([tmp_path / "env" / "bin" / "scanc", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True,
                            check=False)
    assert helped.returncode == 0 and "doctor" in helped.stdout, helped.stderr


def test_versions_agree() -> None:
    import scanc

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert scanc.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_justified_and_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    pins = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {name.lower().replace("_", "-") for name in pins}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"], *project["optional-dependencies"]["bench"]]:
        name = re.split(r"[<>=;\[ ]", requirement)[0].lower()
        assert name == "scanc" or name in pinned, requirement
    for line in text.split("dependencies = [")[1].split("]")[0].strip().splitlines():
        assert "#" in line, line


def test_tables_of_results_are_up_to_date() -> None:
    """``make readme`` makes them."""
    from scanc.perf.results import PACKAGED, all_results
    from scanc.perf.tables import filled

    results = all_results([PACKAGED])
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert filled(path.read_text(), results) == path.read_text(), path


def test_nothing_is_imported_by_a_bare_name() -> None:
    bare = re.compile(r"^\s*(from|import) (ops|autotune|models|perf)\b", re.MULTILINE)
    for folder in ("scanc", "ops", "autotune", "models", "perf", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not bare.search(path.read_text()), path
