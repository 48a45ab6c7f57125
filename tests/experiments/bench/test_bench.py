"""The benchmark's parts: what it compares, what it measures, what it refuses."""

import pytest
import torch
from torch import nn

from lambdanets.experiments.bench import bench, calibrate, growth
from lambdanets.experiments.bench.cases import CASES, QUICK, Case, select_cases
from lambdanets.experiments.bench.contenders import Contender, contenders
from lambdanets.experiments.bench.measure import check_results, interleaved, peak_bytes, saved_bytes
from lambdanets.experiments.report import report
from lambdanets.experiments.report.results import read_rows, table_of, write_bench, write_cuda
from lambdanets.files import write_csv
from lambdanets.kernels.grid.planner import kernels_for

SMALL = [Case(2, (6, 6), 16), Case(2, (6, 7), 16, 3), Case(2, (9,), 16), Case(2, (6, 6), 16, 3, 2)]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_all_lambda_layers_of_a_case_compute_the_same(case):
    if case.scope is None and len(case.grid) == 2 and case.grid[0] != case.grid[1]:
        pytest.fail("the peers' global layers are square")
    group = list(contenders(case))
    check_results(group)
    names = {contender.name for contender in group}
    assert "lambdanets" in names
    assert {"attention", "convolution"} <= names
    assert ("lucidrains" in names) == (len(case.grid) == 2)
    assert ("timm" in names) == (case.intra_depth == 1)


def test_a_contender_that_computes_something_else_stops_the_benchmark():
    x = torch.randn(2, 4)
    group = [Contender("ours", nn.Identity(), x, True), Contender("theirs", nn.Hardtanh(), 3 * x, True)]
    with pytest.raises(RuntimeError, match="theirs differs from ours in its output by"):
        check_results(group)


class WrongGradient(nn.Module):
    """The identity, whose gradient is another's."""

    def forward(self, x):
        return x.detach() + 2 * x - 2 * x.detach()


def test_a_contender_with_another_gradient_stops_the_benchmark():
    x = torch.randn(2, 4)
    group = [Contender("ours", nn.Identity(), x, True), Contender("theirs", WrongGradient(), x, True)]
    with pytest.raises(RuntimeError, match="theirs differs from ours in its gradient of the input by"):
        check_results(group)


def test_checking_leaves_the_running_statistics_alone():
    norm, x = nn.BatchNorm1d(4), torch.randn(8, 4)
    check_results([Contender("ours", norm, x, True)])
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert norm.num_batches_tracked == 0


def test_calls_are_interleaved():
    order = []
    timings = interleaved([lambda: order.append("a"), lambda: order.append("b")], seconds=0, least=8)
    turns = ["".join(turn) for turn in zip(order[::2], order[1::2], strict=True)]
    assert len(turns) == 9  # one to warm up, eight timed
    assert set(turns) == {"ab", "ba"}  # each turn has both, in changing order
    assert all(timing.repeats == 8 and timing.low <= timing.median <= timing.high for timing in timings)


def test_saved_bytes_counts_storages_once_and_neither_inputs_nor_parameters():
    class Square(nn.Module):
        def forward(self, x):
            y = x * x  # keeps the input only
            return y * y  # keeps y, twice the same storage

    assert saved_bytes(Square(), torch.ones(10, 10)) == 400
    assert saved_bytes(nn.Linear(10, 10), torch.ones(10, 10)) == 0


def test_peak_bytes_sees_what_is_freed_again():
    def call():
        large = torch.ones(1 << 20)
        del large
        return torch.ones(1 << 18)

    assert 4 << 20 <= peak_bytes(call) < 5 << 20


def test_cases_are_chosen_by_pattern():
    assert select_cases(None, quick=True) == list(QUICK)
    assert [case.name for case in select_cases("scope9-*", quick=False)] == [
        "scope9-14x14-d256-b8",
        "scope9-28x28-d128-b4",
        "scope9-56x56-d64-b2",
        "scope9-14x14-d256-b8-u4",
        "scope9-28x28-d128-b4-u4",
        "scope9-56x56-d64-b2-u4",
    ]
    assert len({case.name for case in CASES}) == len(CASES)
    with pytest.raises(ValueError, match=r"cases must match at least one of global-7x7.*got 'nothing'"):
        select_cases("nothing", quick=False)


@pytest.fixture(scope="module")
def rows():
    return bench.run([Case(2, (6, 6), 16), Case(2, (6, 6), 16, 3, 2)], seconds=0.01)


def test_rows_name_machine_versions_threads_and_precision(rows, tmp_path):
    for name in ("machine", "torch", "timm", "lambda-networks", "threads", "precision", "python"):
        assert all(row[name] for row in rows), name
    path = tmp_path / "bench.csv"
    write_csv(path, rows)
    again = read_rows(path)
    assert [row["contender"] for row in again] == [row["contender"] for row in rows]
    assert report.compact_table(again) == report.compact_table(rows)


def test_ratios_are_the_others_time_over_ours(rows):
    found = {(row["contender"], row["pass"]): row["median_ms"] for row in rows if row["case"] == rows[0]["case"]}
    peers = min(found["lucidrains", "forward"], found["timm", "forward"])
    ratios = report.ratios(rows)[rows[0]["case"]]["forward"]
    assert ratios["peers"] == pytest.approx(peers / found["lambdanets", "forward"])
    own = min(ms for (name, way), ms in found.items() if name.startswith("lambdanets:") and way == "forward")
    assert ratios["kernels"] == pytest.approx(own / found["lambdanets", "forward"])


def test_ours_keeps_less_than_the_peers():
    (measured,) = [bench.measure_case(Case(2, (12, 12), 64), seconds=0, kernels=False, rate=1e9)]
    kept = {row["contender"]: row["saved_bytes"] for row in measured}
    assert kept["lambdanets"] < min(kept["lucidrains"], kept["timm"])


def test_plots_and_tables_are_written(rows, tmp_path):
    report.plot_bench(rows, tmp_path / "bench.png")
    grown = growth.run((4, 28, 29), seconds=0)
    report.plot_growth(grown, tmp_path / "growth.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("bench.png", "growth.png"))
    assert report.bench_table(rows).count("\n") == len(rows) + 1
    assert "fit from n = 700" in report.growth_table(grown)


def test_exponents_are_slopes_in_the_logarithm():
    rows = [
        {"positions": n, "contender": "ours", "pass": "forward", "median_ms": 1e-5 * n**1.5} for n in (49, 800, 3000)
    ]
    assert growth.exponents(rows) == {("ours", "forward"): pytest.approx(1.5)}


def test_fit_finds_the_constants_that_made_the_times():
    generator = torch.Generator().manual_seed(0)
    works = (torch.rand(20, 3, generator=generator).double() * torch.tensor([1e9, 1e6, 50.0])).tolist()
    truth = [2e-11, 1e-9, 5e-6]
    seconds = [sum(c * w for c, w in zip(truth, work, strict=True)) for work in works]
    assert calibrate.fit(works, seconds) == pytest.approx(truth, rel=1e-3)


def test_calibration_covers_every_kernel():
    cases = [Case(1, (5, 5), 16), Case(1, (5, 5), 16, 3), Case(1, (4, 4), 16)]
    constants = calibrate.calibrate(cases, seconds=0)
    assert set(constants["devices"]["cpu"]) == set(kernels_for("cpu"))
    assert constants["measured_on"]["torch"] == torch.__version__.split("+")[0]


def test_files_of_earlier_versions_have_no_commit(rows, tmp_path):
    older = [{name: value for name, value in row.items() if name != "commit"} for row in rows]
    write_csv(tmp_path / "old.csv", older)
    again = read_rows(tmp_path / "old.csv")
    assert report.environment_line(again).endswith(f"Python {rows[0]['python']}")
    newer = [{**row, "commit": "abc1234"} for row in rows]
    assert report.environment_line(newer).endswith(f", lambdanets {rows[0]['lambdanets']} (abc1234)")


def test_a_full_disk_leaves_the_old_results(rows, tmp_path, monkeypatch):
    write_bench(rows, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"bench.csv", "bench.md", "bench.png"}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for write in (write_bench, write_cuda):
        with pytest.raises(OSError, match="No space left"):
            write(rows[:1], tmp_path)
    with pytest.raises(OSError, match="No space left"):
        report.plot_bench(rows, tmp_path / "bench.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_table_is_made_of_a_gpus_results(rows, tmp_path):
    on_gpu = [{**{name: row[name] for name in ("case", "contender", "pass")}, "card": "H100"} for row in rows]
    (path,) = write_cuda(on_gpu, tmp_path)
    with pytest.raises(ValueError, match=r"bench-cuda\.csv is of the benchmark on a GPU"):
        table_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("\0\udcff", "not a result file"), ("a,b\n1,2\n", "not a result file"), ("", "not a result file")],
)
def test_a_file_that_is_no_result_is_refused(content, message, tmp_path):
    path = tmp_path / "some.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_rows(path)
    with pytest.raises(FileNotFoundError, match="'lambdanets bench' writes"):
        read_rows(tmp_path / "missing.csv")
