"""``pytest -p scanc.dropin.pytest_plugin``: a test run with the drop-in installed, in pytest-xdist's processes too."""

from __future__ import annotations

from scanc import dropin

dropin.install()
