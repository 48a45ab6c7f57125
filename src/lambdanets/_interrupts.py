"""Ctrl-C while ``python -m lambdanets`` imports PyTorch: one line and status 130, as later on.

Python imports the package before ``__main__`` runs, so nothing else can catch it. Other programs are left alone.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from types import TracebackType


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    os.write(2, b"Interrupted.\n")
    os._exit(130)


# While Python looks for the module to run, the first word of the program is "-m".
if sys.argv[:1] == ["-m"] and ("-m", "lambdanets") in pairwise(sys.orig_argv):
    sys.excepthook = _end
