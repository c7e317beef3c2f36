"""The rivals' names: found while installed, gone or given back afterwards, refused by name where nothing serves them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scanc import dropin
from scanc.errors import NotProvided, ScancError
from scanc.ops.dropin import causal_conv1d, selective_scan_interface

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    assert not dropin.is_installed()
    yield
    dropin.uninstall()


def test_names_come_and_go() -> None:
    with dropin.installed():
        from mamba_ssm import Mamba  # noqa: F401
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update  # noqa: F401

        assert selective_scan_fn is selective_scan_interface.selective_scan_fn
        assert importlib.import_module("causal_conv1d").causal_conv1d_fn is causal_conv1d.causal_conv1d_fn
        with dropin.installed():
            pass
        assert dropin.is_installed()
    assert not any(name.startswith(("mamba_ssm", "causal_conv1d")) for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")


def test_every_module_in_the_list_imports() -> None:
    dropin.install()
    for name in dropin.SERVES:
        module = importlib.import_module(name)
        assert module.__all__ and all(callable(getattr(module, each)) for each in module.__all__)
        assert importlib.util.find_spec(name) is not None


def test_versions_are_known_without_importing() -> None:
    dropin.install()
    for package, version in dropin.VERSIONS.items():
        assert importlib.metadata.version(package) == importlib.metadata.version(package.replace("_", "-")) == version
        assert importlib.import_module(package).__version__ == version
    assert importlib.metadata.version("torch")
    dropin.uninstall()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("mamba_ssm")


@pytest.mark.parametrize(
    "line", ["from mamba_ssm import Mamba3", "import mamba_ssm.utils.hf", "from mamba_ssm.ops.triton import k_activations"]
)
def test_what_is_not_served_is_refused_by_name(line: str) -> None:
    dropin.install()
    with pytest.raises(NotProvided, match=r"no 'mamba_ssm\..*It has: mamba_ssm, .*uninstall") as caught:
        exec(line, {})
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, ScancError)
    assert not hasattr(importlib.import_module("mamba_ssm"), "Mamba3")


def test_a_truly_installed_package_is_said_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> None:
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("who = 'the real one'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    real = importlib.import_module("mamba_ssm")
    try:
        dropin.install()
        assert [line for line in heard if "mamba_ssm is installed" in line and line.startswith("info") and str(tmp_path) in line]
        assert not hasattr(importlib.import_module("mamba_ssm"), "who")
        dropin.uninstall()
        assert importlib.import_module("mamba_ssm") is real
    finally:
        sys.modules.pop("mamba_ssm", None)


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "scanc.dropin", *argv], cwd=cwd, capture_output=True, text=True, check=False)


def test_a_script_runs_as_it_is(tmp_path: Path) -> None:
    """Its own folder is on the path, its arguments are its own, and it runs as the main program; likewise a module."""
    (tmp_path / "beside.py").write_text("word = 'beside'\n")
    imports = "import sys, beside\nfrom causal_conv1d import causal_conv1d_fn\n"
    (tmp_path / "train.py").write_text(imports + "print(__name__, sys.argv[1:], beside.word, causal_conv1d_fn.__module__)\n")
    wanted = "__main__ ['--steps', '3'] beside scanc.ops.dropin.causal_conv1d\n"
    assert run(str(tmp_path / "train.py"), "--steps", "3", cwd=ROOT).stdout == wanted
    assert run("-m", "train", "--steps", "3", cwd=tmp_path).stdout == wanted


def test_wrong_usage_says_how() -> None:
    from scanc.dropin.__main__ import main

    assert main([]) == main(["nowhere.py"]) == main(["--unknown"]) == main(["-m"]) == 2
    assert main(["--help"]) == 0


def test_a_test_run_in_several_processes(tmp_path: Path) -> None:
    """pytest-xdist starts Python anew, where the plugin is the way in."""
    (tmp_path / "test_it.py").write_text("from causal_conv1d import causal_conv1d_fn\n\ndef test_it():\n    assert causal_conv1d_fn\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "scanc.dropin.pytest_plugin", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in ran.stdout, ran.stdout
