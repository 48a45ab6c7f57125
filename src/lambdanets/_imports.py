"""Loading a module of ours as soon as somebody imports a certain package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["load_after"]


def load_after(package: str, module: str, unless: Sequence[str] = ()) -> None:
    """Imports ``module`` right behind the first import of ``package``, which has not taken place yet.

    Args:
        package: the name of a top-level package; it need not be installed.
        module: what to import.
        unless: modules that ``module`` needs and that import the package themselves. Where one of them has begun to,
            it is not complete yet, and nothing is loaded.
    """
    sys.meta_path.insert(0, _Watch(package, module, unless))


class _Watch(MetaPathFinder):
    """Finds a package by the other finders, and makes the one import of it load a module of ours too."""

    def __init__(self, package: str, module: str, unless: Sequence[str]) -> None:
        self.package, self.module, self.unless = package, module, unless

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package's own spec; None for all other names."""
        if fullname != self.package:
            return None
        others = [finder for finder in sys.meta_path if not isinstance(finder, _Watch)]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._attach(spec.loader)
        return spec

    def _attach(self, loader: object) -> None:
        # Only this loader's method, for the time of the import: the loader stays what tools expect of the package.
        execute = loader.exec_module  # type: ignore[attr-defined]

        def execute_and_load(module: ModuleType) -> None:
            loader.exec_module = execute  # type: ignore[attr-defined]
            execute(module)
            # Somebody may look for a package without importing it, so the watch ends here and not when it is found.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                if not any(name in sys.modules for name in self.unless):
                    import_module(self.module)

        loader.exec_module = execute_and_load  # type: ignore[attr-defined]
