"""docs/dropin.md, block after block, says what happens; its table lists what is served."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scanc import dropin

PAGE = (Path(__file__).parents[2] / "docs" / "dropin.md").read_text()


def test_the_page_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(compile(block, "dropin.md", "exec"), names)
    finally:
        dropin.uninstall()
    assert capsys.readouterr().out.splitlines() == re.findall(r"# (torch\.Size.*)", PAGE)


def test_the_table_lists_every_module() -> None:
    for name in dropin.SERVES:
        last = name.rpartition(".")[2]
        assert f"`{name}`" in PAGE or (name.startswith("causal_conv1d.") and f"`{last}`" in PAGE), name
