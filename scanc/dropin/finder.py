"""The import system's side of the drop-in: finds the rivals' modules, fills them, and answers for their versions.

Every served module is a package to Python, so that ``from mamba_ssm.ops import nothing`` looks for a module of that name and so
comes back here, where the error can say what there is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from scanc.errors import NotProvided


class Finder(DistributionFinder):
    """``serves``: rival's module -> modules of scanc.ops.dropin; ``versions``: rival's package -> the version it goes by, if any."""

    def __init__(self, serves: Mapping[str, Sequence[str]], versions: Mapping[str, str]) -> None:
        self.serves, self.versions = serves, versions
        self.roots = {name.partition(".")[0] for name in serves}
        self.packages = {".".join(name.split(".")[:depth]) for name in serves for depth in range(1, name.count(".") + 2)}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a served module; None for what is nobody's here. Raises NotProvided for a rival's name that is not served."""
        package = fullname.partition(".")[0]
        if package not in self.roots:
            return None
        if fullname not in self.packages:
            raise NotProvided(name=fullname, available=", ".join(self.serves), package=package)
        return importlib.machinery.ModuleSpec(fullname, Loader(self), origin="scanc.dropin", is_package=True)

    def find_distributions(self, context: DistributionFinder.Context = DistributionFinder.Context()) -> Iterator[Distribution]:  # noqa: B008
        """Package metadata: some check a version before they import."""
        wanted = None if context.name is None else context.name.replace("-", "_").lower()
        for package, version in self.versions.items():
            if wanted in (None, package):
                yield Served(package, version)


class Loader(importlib.abc.Loader):
    """Fills a served module with the names of the modules behind it."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None  # Python's own

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__doc__ = "Served by scanc.dropin."
        offered: list[str] = []
        for source in self.finder.serves.get(name, ()):
            behind = importlib.import_module(f"scanc.ops.dropin.{source}")
            for each in behind.__all__:
                setattr(module, each, getattr(behind, each))
            offered += behind.__all__
        module.__dict__["__all__"] = offered
        if name in self.finder.versions:
            module.__dict__["__version__"] = self.finder.versions[name]


class Served(Distribution):
    """The metadata of a package that is served, not installed."""

    def __init__(self, package: str, version: str) -> None:
        self.package, self.own_version = package, version

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            name = self.package.replace("_", "-")
            return f"Metadata-Version: 2.1\nName: {name}\nVersion: {self.own_version}\nSummary: served by scanc.dropin\n"
        return f"{self.package}\n" if filename == "top_level.txt" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


__all__ = ["Finder", "Loader", "Served"]
