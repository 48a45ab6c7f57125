"""Compare the speed of two source trees: ``python scripts/compare_trees.py OLD_SRC NEW_SRC``.

Each tree has a worker process of its own. The two take turns on every case, in random order, and each turn gives one
ratio, the new tree's time over the old one's. A round starts two new processes and visits every case that is not
decided yet: where a process has its memory moves a time by some per cent, so the interval is taken over rounds too.
Turns are appended to OUTPUT.turns.csv as they are measured, so that the command goes on where it was stopped; OUTPUT
has a row for each case and pass, with the verdict:

    not slower   the interval of the ratio ends below the limit (1.03)
    slower       it begins above it
    undecided    neither; more time may tell
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PASSES = ("forward", "forward+backward")
BLOCK_SECONDS = 0.03  # of one turn of a tree: a median over so much time
LEAST_ROUNDS = 5
TURN_FIELDS = ("case", "pass", "round", "old_ms", "new_ms")


def all_cases() -> dict[str, dict]:
    """The benchmark's cases as plain numbers."""
    from lambdanets.experiments.bench.cases import CASES

    fields = ("batch", "dim", "scope", "intra_depth", "num_heads", "dim_key")
    return {case.name: {"grid": list(case.grid), **{name: getattr(case, name) for name in fields}} for case in CASES}


def work() -> None:
    """Answer the parent's requests, one JSON object a line: a case to build, or a pass to run ``calls`` times."""
    import torch

    import lambdanets

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not disturb the answers
    print(json.dumps({"file": lambdanets.__file__, "torch": torch.__version__}), file=answers, flush=True)
    calls: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            calls = passes_of(torch, lambdanets, request["case"])
            answer = {}
        else:
            call, times = calls[request["pass"]], []
            for _ in range(request["calls"]):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            answer = {"seconds": statistics.median(times)}
        print(json.dumps(answer), file=answers, flush=True)


def passes_of(torch, lambdanets, case: dict) -> dict:
    """The layer of a case as calls, by the public interface alone, which both trees have."""
    torch.manual_seed(0)
    grid, scope = tuple(case["grid"]), case["scope"]
    arguments = {name: case[name] for name in ("num_heads", "dim_key", "intra_depth", "scope")}
    size = grid if scope is None else None
    layer = lambdanets.LambdaLayer(case["dim"], size=size, ndim=len(grid), **arguments)
    leaf = torch.randn(case["batch"], case["dim"], *grid).requires_grad_()
    x = leaf.detach()

    def forward() -> None:
        layer.eval()
        with torch.inference_mode():
            layer(x)

    def forward_backward() -> None:
        layer.train()
        leaf.grad = None
        layer.zero_grad(set_to_none=True)
        out = layer(leaf)
        out.backward(torch.ones_like(out))

    return dict(zip(PASSES, (forward, forward_backward), strict=True))


class Worker:
    """A process that runs the layer of one tree."""

    def __init__(self, source: Path, threads: int, cache: str):
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # A calibration of this machine was made for one of the trees: both use the constants of their package.
            "XDG_CACHE_HOME": cache,
        }
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()
        if not Path(self.about["file"]).is_relative_to(source):
            raise SystemExit(f"{source} was asked for, but lambdanets comes from {self.about['file']}")

    def ask(self, request: dict) -> dict:
        """Send a request and wait for its answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def interval(turns: list[dict]) -> tuple[float, float, float]:
    """Median of the ratios with a 95 % bootstrap interval: rounds are drawn, and turns within each."""
    by_round: dict[int, list[float]] = {}
    for turn in turns:
        by_round.setdefault(int(turn["round"]), []).append(float(turn["new_ms"]) / float(turn["old_ms"]))
    rounds = [np.array(ratios) for ratios in by_round.values()]
    generator = np.random.default_rng(0)
    medians = []
    for _ in range(1000):
        drawn = [rounds[index] for index in generator.integers(len(rounds), size=len(rounds))]
        medians.append(np.median(np.concatenate([generator.choice(ratios, len(ratios)) for ratios in drawn])))
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(np.concatenate(rounds))), float(low), float(high)


def _looks(most: int) -> set[int]:
    """Numbers of rounds after which it is looked at: after each of them, an interval would be narrow once by chance."""
    looks = [LEAST_ROUNDS]
    while looks[-1] < most:
        looks.append(math.ceil(1.25 * looks[-1]))
    return set(looks)


def verdict(turns: list[dict], limit: float) -> str:
    """Return the verdict on a case and pass: not slower, slower or undecided."""
    rounds = len({turn["round"] for turn in turns})
    if rounds not in _looks(rounds):
        return "undecided"
    _, low, high = interval(turns)
    return "not slower" if high <= limit else "slower" if low > limit else "undecided"


def visit(old: Worker, new: Worker, name: str, way: str, number: int, turns: int) -> list[dict]:
    """Take turns on one pass of the case that both workers have built."""
    estimates = [worker.ask({"pass": way, "calls": 3})["seconds"] for worker in (old, new)]
    calls = max(1, round(BLOCK_SECONDS / max(estimates)))
    taken = []
    for _ in range(turns):
        seconds = {}
        for key, worker in random.sample([("old_ms", old), ("new_ms", new)], 2):
            worker.ask({"pass": way, "calls": 1})  # brings its data back into the caches
            seconds[key] = round(1e3 * worker.ask({"pass": way, "calls": calls})["seconds"], 5)
        taken.append({"case": name, "pass": way, "round": number, **seconds})
    return taken


def measure(args: argparse.Namespace, cases: dict[str, dict], turns_file: Path) -> list[dict]:
    """Take rounds until every case is decided or the time is up; returns all turns, those of earlier runs included."""
    turns = read(turns_file)
    deadline = time.monotonic() + 60 * args.minutes
    number = 1 + max((int(turn["round"]) for turn in turns), default=0)
    with open(turns_file, "a", encoding="utf-8", newline="") as file, tempfile.TemporaryDirectory() as cache:
        writer = csv.DictWriter(file, TURN_FIELDS, lineterminator="\n")
        if not turns:
            writer.writeheader()
        while waiting := undecided(turns, cases, args.limit):
            print(f"round {number}: {len(waiting)} cases, {max(0, deadline - time.monotonic()) / 60:.0f} min left")
            workers: list[Worker] = []
            try:
                workers += [Worker(source, args.threads, cache) for source in (args.old, args.new)]
                for name, ways in waiting.items():
                    for worker in workers:
                        worker.ask({"case": cases[name]})
                    for way in ways:
                        taken = visit(*workers, name, way, number, args.turns)
                        writer.writerows(taken)
                        file.flush()
                        turns += taken
                    if time.monotonic() > deadline:
                        return turns
            finally:
                for worker in workers:
                    worker.close()
            number += 1
    return turns


def undecided(turns: list[dict], cases: Iterable[str], limit: float) -> dict[str, list[str]]:
    """The passes of each case that need more turns, the least measured case first."""
    by_case = grouped(turns)
    found = {}
    for name in sorted(cases, key=lambda name: len(by_case.get((name, PASSES[0]), []))):
        ways = [way for way in PASSES if verdict(by_case.get((name, way), []), limit) == "undecided"]
        if ways:
            found[name] = ways
    return found


def read(path: Path) -> list[dict]:
    """Rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def grouped(turns: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the turns by case and pass."""
    found: dict[tuple[str, str], list[dict]] = {}
    for turn in turns:
        found.setdefault((turn["case"], turn["pass"]), []).append(turn)
    return found


def summary(turns: list[dict], limit: float) -> list[dict]:
    """A row for each case and pass."""
    rows = []
    for (case, way), taken in grouped(turns).items():
        median, low, high = interval(taken)
        old, new = (statistics.median(float(turn[key]) for turn in taken) for key in ("old_ms", "new_ms"))
        rows.append(
            {
                "case": case,
                "pass": way,
                "old_ms": round(old, 4),
                "new_ms": round(new, 4),
                "ratio": round(median, 4),
                "ratio_low": round(low, 4),
                "ratio_high": round(high, 4),
                "turns": len(taken),
                "rounds": len({turn["round"] for turn in taken}),
                "verdict": verdict(taken, limit),
            }
        )
    return rows


def arguments() -> tuple[argparse.Namespace, dict[str, dict]]:
    """Return what the command line asks for, and the cases that it selects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=lambda text: Path(text).resolve(), help="src folder of the old tree")
    parser.add_argument("new", type=lambda text: Path(text).resolve(), help="src folder of the new tree")
    parser.add_argument("--output", type=Path, default=Path("trees.csv"), help="the summary [trees.csv]")
    parser.add_argument("--cases", default="*", help="only cases whose name matches this pattern")
    parser.add_argument("--minutes", type=float, default=20, help="time for everything [20]")
    parser.add_argument("--turns", type=int, default=5, help="turns for each visit of a case and pass [5]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each worker [all cores]")
    parser.add_argument("--limit", type=float, default=1.03, help="what counts as slower [1.03]")
    args = parser.parse_args()
    for source in (args.old, args.new):
        if not (source / "lambdanets" / "__init__.py").is_file():
            parser.error(f"{source} has no lambdanets/__init__.py; give the src folder of a tree")
    cases = {name: case for name, case in all_cases().items() if fnmatch.fnmatch(name, args.cases)}
    if not cases:
        parser.error(f"--cases {args.cases} matches none of {', '.join(all_cases())}")
    return args, cases


def conditions(args: argparse.Namespace, turns_file: Path) -> dict:
    """Return machine, versions and both commits, and end the command where earlier turns were taken under others."""
    from lambdanets.provenance import environment, source_commit

    commits = {f"{key}_commit": source_commit(getattr(args, key) / "lambdanets") for key in ("old", "new")}
    where = {**environment(), "threads": args.threads, **commits}
    del where["lambdanets"], where["commit"]
    about_file = args.output.with_suffix(".about.json")
    about = {name: where[name] for name in ("machine", "threads", "torch", *commits)}
    if turns_file.exists() and json.loads(about_file.read_text(encoding="utf-8")) != about:
        print(
            f"{turns_file} was measured under other conditions ({about_file}); give another --output", file=sys.stderr
        )
        raise SystemExit(2)
    about_file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return where


def print_rows(rows: list[dict]) -> dict[str, int]:
    """Print the summary; return the number of rows by verdict."""
    for row in rows:
        print(
            f"{row['case']}, {row['pass']}: {row['old_ms']:.3f} -> {row['new_ms']:.3f} ms, ratio {row['ratio']:.3f} "
            f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), {row['turns']} turns: {row['verdict']}"
        )
    counts = {word: sum(row["verdict"] == word for row in rows) for word in ("not slower", "slower", "undecided")}
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return counts


def main() -> int:
    """Measure, write the summary and print it; the status is 0 if every case is not slower."""
    from lambdanets.files import write_csv

    args, cases = arguments()
    turns_file = args.output.with_suffix(".turns.csv")
    where = conditions(args, turns_file)
    try:
        measure(args, cases, turns_file)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on.")
    rows = summary(read(turns_file), args.limit)
    write_csv(args.output, [{**row, **where} for row in rows])
    counts = print_rows(rows)
    return 0 if counts["not slower"] == len(rows) == len(cases) * len(PASSES) else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    else:
        sys.exit(main())
