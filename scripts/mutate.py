"""Break the code on purpose, one place at a time, and list the changes that no test notices.

    python scripts/mutate.py                             # 300 places of kernels/ and layers/, chosen by a seed
    python scripts/mutate.py --all src/lambdanets/kernels/grid/banded.py
    python scripts/mutate.py --sample 12 src/lambdanets/kernels/grid/compiled/cpp
    python scripts/mutate.py --sample 100 --output mutants.csv    # hours; stopped and called again, it goes on

A mutant is the package with one change: another operator or comparison, a number off by one, a sign, a mask, a
transposition or a flip dropped; in C++, which is changed token by token, another stride or a condition dropped. Each
runs the tests that mirror its file until the first failure; what none of them notices *survives*: a gap in the tests,
or a change without effect. One that runs for several times as long as its tests on the unbroken code, which come
first, is a "timeout": it is noticed. Mutants are written to a temporary copy, so the checkout is not touched. A child
process is forked for each behind the slow imports, some seconds a mutant, half a minute with the library of a C++ one,
which is built for it (CMake and Ninja); what does not compile is "not built". Triton's kernels run in its interpreter,
as in the tests: minutes for one that survives.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from mutants import ROOT, Key, Mutant, mutants_of, unchanged

SOURCE = ROOT / "src"
PACKAGE = SOURCE / "lambdanets"
# Kernels of more than one file.
PART_OF = {"row_spectral_plan": "row_spectral", "strips": "banded"}
# A child's exit status.
OUTCOMES = {0: "survived", 3: "no tests", 4: "not built"}


def tests_of(file: Path) -> list[str]:
    """Return pytest's arguments for the tests that mirror a file of the package."""
    inner = file.relative_to(PACKAGE)
    if "triton" in inner.parts:
        found = sorted((ROOT / "tests/kernels/grid/triton").glob("test_*.py"))
        # Last what takes longest: the compiler for GPUs.
        return [str(each) for each in sorted(found, key=lambda each: each.stem == "test_ahead")]
    if "compiled" in inner.parts:
        return [str(ROOT / "tests/kernels/grid/compiled")]
    own = ROOT / "tests" / inner.parent / f"test_{inner.name}"
    kernel = PART_OF.get(inner.stem, inner.stem)
    if inner.parent == Path("kernels/grid") and (kernel != inner.stem or "\nKERNEL = " in file.read_text("utf-8")):
        own = own.with_name(f"test_{kernel}.py")
        shared = [str(ROOT / "tests/kernels/grid/test_grid_kernels.py"), "-k", kernel]
        return [str(own), *shared] if own.exists() else shared
    rooms = [ROOT / "tests" / inner.parent]
    if inner.parts[0] == "kernels":
        rooms = [ROOT / "tests/test_functional.py", *sorted((ROOT / "tests/kernels").rglob("test_*.py"))]
        rooms = [room for room in rooms if "triton" not in room.parts]
    return [str(own)] * own.exists() + [str(room) for room in rooms if room != own and room.exists()]


def is_noticed(mutant: Mutant, copy: Path) -> bool:
    """Run the mutant's tests in this process, which is a forked child; True if one of them fails."""
    target = copy / mutant.file.relative_to(SOURCE)
    target.write_text(mutant.source, encoding="utf-8")
    if mutant.file.suffix != ".py" and not build(copy):
        raise SystemExit(4)
    return fails(tests_of(mutant.file), copy)


def build(copy: Path) -> bool:
    """Build the compiled kernels of a copy of the package, for the tests of this process; False if that fails."""
    folder = copy / "build"
    source = copy / (PACKAGE / "kernels/grid/compiled/cpp").relative_to(SOURCE)
    for words in (["-G", "Ninja", "-S", str(source), "-B", str(folder)], ["--build", str(folder), "-j", "1"]):
        if subprocess.run(
            ["cmake", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode:
            return False
    os.environ["LAMBDANETS_LIBRARY"] = str(folder / "lambdanets_compiled.so")
    return True


def fails(tests: list[str], copy: Path) -> bool:
    """Run tests on a copy of the package in this process, which is a forked child."""
    import pytest

    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT), "-c", "pyproject.toml"]
    code = pytest.main([*options, *tests])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(3)
    return code != pytest.ExitCode.OK


def copied() -> Path:
    """Return a temporary copy of the package."""
    copy = Path(tempfile.mkdtemp(prefix="mutant-"))
    return shutil.copytree(SOURCE, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def judge(mutants: list[Mutant], jobs: int, limit: Callable[[Mutant], float]) -> Iterator[tuple[Mutant, str, float]]:
    """Yield (mutant, "killed", "survived", "timeout", "no tests" or "not built", seconds) as they are done.

    Args:
        mutants: what is judged, in this order.
        jobs: so many at the same time.
        limit: the seconds that the tests of a mutant may take.
    """
    running: dict[int, tuple[Mutant, Path, float]] = {}
    waiting = list(reversed(mutants))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant, copy = waiting.pop(), copied()
                running[start(mutant, copy)] = (mutant, copy, time.monotonic())
            for child, (mutant, copy, begin) in list(running.items()):
                done, status = os.waitpid(child, os.WNOHANG)
                took = time.monotonic() - begin
                if not done and took < limit(mutant):
                    continue
                if not done:
                    end(child)
                del running[child]
                shutil.rmtree(copy, ignore_errors=True)
                yield mutant, OUTCOMES.get(os.waitstatus_to_exitcode(status), "killed") if done else "timeout", took
            time.sleep(0.05)
    finally:
        for child, (_, copy, _) in running.items():
            end(child)
            shutil.rmtree(copy, ignore_errors=True)


def start(mutant: Mutant, copy: Path) -> int:
    """Fork a child, with a session of its own, that runs the mutant's tests; returns its process ID."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 2
        try:
            code = 1 if is_noticed(mutant, copy) else 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            os._exit(code)
    return child


def end(child: int) -> None:
    """Kill a child and all that it started."""
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def can_be_tested(file: Path) -> bool:
    """Return True if this machine has what the tests of a file need; else say that it is left out."""
    if file.suffix != ".py":
        missing = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    else:
        missing = [] if "triton" not in file.parts or find_spec("triton") else ["triton"]
    if missing:
        print(f"left out: {file.relative_to(ROOT)}, for which {' and '.join(missing)} would be needed")
    return not missing


def places(folders: list[Path]) -> list[Mutant]:
    """Return every mutant of the source files in some files and folders that can be tested here."""
    found = sorted({file for path in folders for file in ([path] if path.is_file() else path.rglob("*"))})
    files = [file.resolve() for file in found if file.suffix in (".py", ".cpp", ".h")]
    return [mutant for file in files if can_be_tested(file) for mutant in mutants_of(file)]


def read_outcomes(path: Path | None) -> dict[Key, dict[str, str]]:
    """Return the rows of a file of outcomes by the keys of their mutants; none if there is no file yet."""
    if path is None or not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["file"], int(row["line"]), row["change"]): row for row in csv.DictReader(file)}


def write_outcomes(path: Path, outcomes: dict[Key, dict[str, str]]) -> None:
    """Write a file of outcomes, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "line", "change", "outcome", "seconds"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(outcomes.items()))
    part.replace(path)


def main() -> None:
    """Judge the mutants, print the survivors, write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="source files or folders; default kernels/ and layers/")
    parser.add_argument("--sample", type=int, default=300, help="how many mutants, spread over all files")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="a CSV file of all outcomes; what it has is not judged again")
    given = parser.parse_args()
    output = given.output and given.output.absolute()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mutants = places(given.files or [PACKAGE / "kernels", PACKAGE / "layers"])
    if not given.all and given.sample < len(mutants):
        mutants = random.Random(given.seed).sample(mutants, given.sample)
    outcomes = read_outcomes(output)
    if output:  # whether it can be written is known before the hours
        write_outcomes(output, outcomes)
    os.chdir(ROOT)
    import hypothesis  # noqa: F401 - imported before the fork, as the rest that takes long
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    # The unbroken code is judged first, once for each set of tests.
    unbroken = {frozenset(tests_of(mutant.file)): unchanged(mutant.file) for mutant in mutants}

    def limit(mutant: Mutant) -> float:
        if mutant.line == 0:
            return math.inf
        return 60 + 3 * float(outcomes[unbroken[frozenset(tests_of(mutant.file))].key]["seconds"])

    for round_ in (list(unbroken.values()), mutants):
        new = [mutant for mutant in round_ if mutant.key not in outcomes]
        print(f"{len(new)} of {len(round_)} {'mutants' if round_ is mutants else 'sets of tests'} to run", flush=True)
        for mutant, outcome, took in judge(new, given.jobs, limit):
            if mutant.line == 0 and outcome != "survived":
                tests = " ".join(tests_of(mutant.file))
                sys.exit(f"{outcome}: the tests do not pass on the unbroken code: pytest {tests}")
            file, line, change = mutant.key
            row = {"file": file, "line": str(line), "change": change, "outcome": outcome, "seconds": f"{took:.0f}"}
            outcomes[mutant.key] = row
            if output:
                write_outcomes(output, outcomes)
            if outcome != "killed" and mutant.line:
                print(f"{outcome:9} {file}:{line}  {change}  ({took:.0f} s)", flush=True)
    counts = Counter(outcomes[mutant.key]["outcome"] for mutant in mutants)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; with the same --output the same command goes on")
