"""State of this package that a result was made by, and the processor."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "environment", "package_version", "processor", "source_commit", "usable_cores"]

# Of a measurement on the CPU.
COLUMNS = (
    *("machine", "cores", "threads", "precision", "python", "torch", "timm", "lambda-networks", "lambdanets"),
    *("commit", "date"),
)
_SOURCE = Path(__file__).parent
_SECONDS = 10


def environment(*columns: str) -> dict[str, Any]:
    """Return what a result file names of where it was made, by column.

    Args:
        *columns: "machine" or "processor", its name; "cores"; "threads" of PyTorch; "precision" of measurements on the
            CPU; "python", its version; "commit" of the clone, or ""; "date"; any other one is the name of a package,
            whose version it has. Default: ``COLUMNS``.
    """
    return {name: _FACTS[name]() if name in _FACTS else package_version(name) for name in columns or COLUMNS}


def package_version(package: str) -> str:
    """The version of an installed package, or ``"not installed"``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name; Linux keeps it where Python does not look."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may use: those that a job's limits leave it, where the system tells them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def source_commit(source: Path = _SOURCE) -> str:
    """The commit of the clone that the package runs from, with "+changes" where files of the package differ from it.

    Args:
        source: the package's folder.

    Returns:
        The short hash; "" where the package is installed without a clone, or git is not available.
    """
    # An environment that lies inside another repository is not a clone of this one: git must track the file.
    if _git(source, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    commit = _git(source, "rev-parse", "--short", "HEAD")
    if commit is None:
        return ""
    return commit + ("+changes" if _git(source, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *words: str) -> str | None:
    """Output of git, or None if it fails."""
    # The query must not lock the index, which another git process may be using.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        # Names of changed files are in no known encoding.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _threads() -> int:
    """Threads of PyTorch, which is imported for a result that has them alone."""
    import torch

    return torch.get_num_threads()


_FACTS: Mapping[str, Callable[[], Any]] = {
    "machine": processor,
    "processor": processor,
    "cores": lambda: os.cpu_count() or 1,
    "threads": _threads,
    "precision": lambda: "float32",
    "python": platform.python_version,
    "commit": source_commit,
    "date": lambda: datetime.date.today().isoformat(),
}
