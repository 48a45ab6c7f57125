"""The goals' table: the furthest case of each, and no goal without cases."""

import pytest

from lambdanets.experiments.bench.cases import CASES
from lambdanets.experiments.report.goals import GOALS, goals_table
from lambdanets.experiments.report.results import write_bench


def row(case, contender, way="forward", ratio=1.0, ms=1.0, over_floor=1.0):
    ratios = {"ratio_median": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
    names = ("over_floor_median", "over_floor_low", "over_floor_high")
    floor = dict(zip(names, (over_floor, 0.9 * over_floor, 1.1 * over_floor), strict=True))
    return {"case": case, "contender": contender, "pass": way, "median_ms": ms, **ratios, **floor}


def table(*rows):
    return goals_table(rows).split("\n")[2:]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.text)
def test_every_goal_has_cases(goal):
    assert any(map(goal.holds_for, CASES))


@pytest.mark.smoke
def test_the_fastest_other_of_the_furthest_case_counts():
    near, far = "global-28x28-d128-b4", "global-32x32-d128-b4"
    rows = [row(near, "lucidrains", ratio=12), row(near, "timm", ratio=30), row(far, "timm", ratio=9)]
    assert table(*rows[:1])[0].startswith("| global, n 784 to 1024, beside lambda layers (1 of 3 cases) | ")
    assert table(*rows) == [
        "| global, n 784 to 1024, beside lambda layers (2 of 3 cases) | forward | at least 10x | "
        "`global-32x32-d128-b4` | 9.00x (8.90 to 9.10) timm | **no** |  |"
    ]
    rows[2]["ratio_median"] = 10.0
    (line,) = table(*rows)
    assert "`global-32x32-d128-b4` | 10.00x" in line
    assert line.endswith("| yes |  |")
    rows += [row(far, "lambdanets", ms=5), row(far, "op:lambdanets", ms=3)]
    assert table(*rows)[0].endswith("| yes |  |")
    rows[2]["ratio_median"] = 9.0
    assert table(*rows)[0].endswith("| **no** | 22.50x |")


def test_without_a_case_of_a_goal_there_is_no_table():
    assert goals_table([row("global-9x9-d8-b1", "timm")]) == ""


def test_the_benchmarks_table_has_the_goals(tmp_path):
    where = dict.fromkeys(
        ("machine", "threads", "cores", "precision", "torch", "timm", "lambda-networks", "python"), "1"
    )
    more = {"noisy": "", "floor_ms": "", "saved_bytes": 1, "peak_bytes": 1, "note": "", **where}
    rows = [row("global-28x28-d128-b4", name) | more for name in ("lambdanets", "timm")]
    write_bench(rows, tmp_path)
    assert goals_table(rows) in (tmp_path / "bench.md").read_text()


def test_ratios_to_the_floor_and_to_one_depth_have_an_upper_bound():
    name = "global-28x28-d128-b4"
    floors = [
        row(case, "op:lambdanets", over_floor=over) for case, over in ((name, 1.5), ("global-32x32-d128-b4", 2.5))
    ]
    (line,) = table(*floors)
    assert line.endswith("| at most 2x | `global-32x32-d128-b4` | 2.50x (2.25 to 2.75) | **no** |  |")
    depths = [
        row(name, "lambdanets", "forward+backward", ms=4),
        row(f"{name}-u4", "lambdanets", "forward+backward", ms=6),
    ]
    (line,) = table(*depths)
    assert line.endswith(f"| forward+backward | at most 1.5x | `{name}-u4` | 1.50x, of medians | yes |  |")
