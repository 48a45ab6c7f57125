"""The benchmark's parts: what it compares, what it measures, what it refuses."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn

from helpers import PRESENT
from lambdanets.experiments.bench import bench, calibrate, growth
from lambdanets.experiments.bench.cases import CASES, QUICK, Case, select_cases
from lambdanets.experiments.bench.contenders import OP, Contender, Op, contenders
from lambdanets.experiments.bench.measure import check_results, passes, peak_bytes, saved_bytes
from lambdanets.experiments.bench.timing import Turns
from lambdanets.experiments.report import bench_report
from lambdanets.experiments.report.results import merged, noisy_rows, read_rows, table_of, write_bench, write_cuda
from lambdanets.files import write_csv
from lambdanets.layers import LambdaLayer

SMALL = [
    Case(2, (6, 6), 16),
    Case(2, (6, 7), 16),
    Case(2, (6, 7), 16, 3),
    Case(2, (9,), 16),
    Case(2, (9,), 16, 3),
    Case(2, (6, 6), 16, 3, 2),
    Case(1, (3, 4, 3), 16),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_all_lambda_layers_of_a_case_compute_the_same(case):
    group = list(contenders(case))
    check_results(group)
    names = {contender.name for contender in group}
    assert "lambdanets" in names
    assert {"convolution", OP} <= names
    assert ("attention" in names) == (case.scope is None)
    # Of lucidrains, layers for images, global ones for squares; of timm, global ones for sequences too.
    assert ("lucidrains" in names) == (len(case.grid) == 2 and (case.scope == 3 or case.grid == (6, 6)))
    assert ("timm" in names) == (case.intra_depth == 1 and (len(case.grid) == 2 or case == SMALL[3]))


def test_the_op_alone_is_the_layer_without_projection_and_norms():
    case = Case(2, (6, 7), 16, 3, 2)
    op, layer = Op(case), LambdaLayer(16, scope=3, intra_depth=2, norm_layer="none")
    layer.positions = op.table
    x = torch.randn(2, 16, 6, 7)
    packed = layer.qkv(x).flatten(2).transpose(1, 2)
    expected = layer(x).reshape(2, 4, 4, 42).transpose(2, 3)
    torch.testing.assert_close(op(packed), expected)


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


def test_saved_bytes_counts_storages_once_and_neither_inputs_nor_parameters():
    class Square(nn.Module):
        def forward(self, x):
            y = x * x  # keeps the input only
            return y * y  # keeps y, twice the same storage

    assert saved_bytes(Square(), torch.ones(10, 10)) == 400
    assert saved_bytes(nn.Linear(10, 10), torch.ones(10, 10)) == 0


def test_saved_bytes_keeps_nothing_itself():
    outputs = []

    class Exp(nn.Module):
        def forward(self, x):
            y = x.exp()  # whose backward pass takes its output
            outputs.append(weakref.ref(y))
            return y

    assert saved_bytes(Exp(), torch.ones(10, 10)) == 400
    assert outputs[0]() is None


def test_peak_bytes_sees_what_is_freed_again():
    def call():
        large = torch.ones(1 << 20)
        del large
        return torch.ones(1 << 18)

    assert 4 << 20 <= peak_bytes(call) < 5 << 20


def test_a_pass_leaves_no_memory_behind():
    """Else the profiler of the next one would miss it, and say so on the terminal."""
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    for call in passes(layer, x).values():
        call()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_a_whole_model_computes_no_gradient_of_its_images():
    class Seen(nn.Linear):
        def forward(self, x):
            wanted.append(x.requires_grad)
            return super().forward(x)

    wanted = []
    for input_gradient in (True, False):
        passes(Seen(4, 4), torch.randn(2, 4), input_gradient)["forward+backward"]()
    assert wanted == [True, False]


def test_a_floor_is_that_of_a_lambda_layer(rows):
    """What computes another function has none."""
    without = {"attention", "convolution"}
    for column in ("floor_ms", "over_floor_median", "over_floor_low", "over_floor_high"):
        assert {row["contender"] for row in rows if row[column] == ""} == without, column


def test_a_floor_is_measured_in_the_turns_of_its_call(monkeypatch):
    """A machine that slows down between a call and the product would show in the ratio of the two."""
    monkeypatch.setattr(bench, "Turns", partial(Turns, clock=lambda call: 2e-3))
    rows = bench.measure_case(Case(2, (6, 6), 64), seconds=0, max_seconds=0, kernels=False)
    for row in rows:
        assert row["gigaflops"] == round(2 * bench.PRODUCT**3 / 2e-3 / 1e9, 1)
    layer, op = ({(row["contender"], row["pass"]): row for row in rows}[name, "forward"] for name in ("lambdanets", OP))
    # In milliseconds; to four digits behind the point.
    projection = 2 * 2 * 36 * 64 * (4 * 16 + 16 + 16) / bench.PRODUCT**3
    assert layer["floor_ms"] - op["floor_ms"] == pytest.approx(projection, abs=1e-4)
    assert op["floor_ms"] * op["over_floor_median"] == pytest.approx(2, rel=1e-2)
    assert op["over_floor_low"] == op["over_floor_median"] == op["over_floor_high"]


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
    assert len(select_cases("scope9-*, *-7x7-*", quick=False)) == 6 + 3
    assert len({case.name for case in CASES}) == len(CASES)
    with pytest.raises(ValueError, match=r"got 'some'"):
        select_cases("scope9-*,some", quick=False)
    with pytest.raises(ValueError, match=r"cases must match at least one of global-7x7.*got 'nothing'"):
        select_cases("nothing", quick=False)


@pytest.fixture(scope="module")
def rows():
    return bench.run([Case(2, (6, 6), 16), Case(2, (6, 6), 16, 3, 2)], seconds=0.01, max_seconds=0.01)


def test_rows_name_machine_versions_threads_and_precision(rows, tmp_path):
    for name in ("machine", "torch", "timm", "lambda-networks", "threads", "precision", "python"):
        assert all(row[name] for row in rows), name
    path = tmp_path / "bench.csv"
    write_csv(path, rows)
    again = read_rows(path)
    assert [row["contender"] for row in again] == [row["contender"] for row in rows]
    assert bench_report.compact_table(again) == bench_report.compact_table(rows)


def test_ours_is_compared_with_the_fastest_peer_and_the_fastest_kernel(rows):
    case = rows[0]["case"]
    found = {row["contender"]: row["ratio_median"] for row in rows if (row["case"], row["pass"]) == (case, "forward")}
    assert found["lambdanets"] == 1
    compared = bench_report.comparisons(rows)[case]["forward"]
    assert compared["peers"]["ratio_median"] == min(found["lucidrains"], found["timm"])
    own = min(ratio for name, ratio in found.items() if name.startswith("lambdanets:"))
    assert compared["kernels"]["ratio_median"] == own


def test_rows_measured_again_take_the_places_of_the_old_ones(rows):
    first, second = (row["case"] for row in (rows[0], rows[-1]))
    again = [{**row, "note": "again"} for row in rows if row["case"] == second]
    result = merged(rows, again)
    assert [(row["case"], row["contender"]) for row in result] == [(row["case"], row["contender"]) for row in rows]
    assert {row["case"] for row in result if row["note"] == "again"} == {second} != {first}
    with pytest.raises(ValueError, match="measured with threads 77, now it is"):
        merged([{**row, "threads": 77} for row in rows], again)
    with pytest.raises(ValueError, match="written by an earlier version"):
        merged([{name: row[name] for name in ("case", "contender")} for row in rows], again)


def test_tables_mark_noisy_rows_and_explain_the_mark(rows):
    quiet = [{**row, "noisy": ""} for row in rows]
    assert bench_report.NOISY not in bench_report.compact_table(quiet) + bench_report.pass_table(
        quiet
    ) + bench_report.bench_table(quiet)
    marked = [{**row, "noisy": "yes" if row["contender"] == "attention" else ""} for row in quiet]
    for table in (
        bench_report.compact_table(marked),
        bench_report.pass_table(marked),
        bench_report.bench_table(marked),
    ):
        assert "x~" in table
        assert table.endswith(bench_report.LEGEND)
    kernel = [{**row, "noisy": "yes"} for row in quiet if row["contender"].startswith("lambdanets:")]
    assert noisy_rows(marked) == [row for row in marked if row["contender"] == "attention"]
    assert kernel
    assert noisy_rows(kernel) == []


def test_ours_keeps_less_than_the_peers():
    (measured,) = [bench.measure_case(Case(2, (12, 12), 64), seconds=0, max_seconds=0, kernels=False)]
    kept = {row["contender"]: row["saved_bytes"] for row in measured}
    assert kept["lambdanets"] < min(kept["lucidrains"], kept["timm"])


@pytest.fixture(scope="module")
def growing():
    """The rows of two sizes, and which turns were taken in which order."""
    visits = []

    class Counted(growth.Turns):
        def take(self, seconds, most=0.0, least=7):
            visits.append(id(self))
            super().take(seconds, most, least)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "Turns", Counted)
        return growth.run((3, 4), seconds=0, max_seconds=0), visits


def test_plots_and_tables_are_written(rows, growing, tmp_path):
    bench_report.plot_bench(rows, tmp_path / "bench.png")
    grown = [{**row, "positions": 100 * row["positions"]} for row in growing[0]]  # as far as the fit begins
    grown[-1]["noisy"] = "yes"
    bench_report.plot_growth(grown, tmp_path / "growth.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("bench.png", "growth.png"))
    quiet = [{**row, "noisy": ""} for row in rows]
    assert bench_report.bench_table(quiet).count("\n") == len(rows) + 1
    assert "fit from n = 700" in bench_report.growth_table(grown)


def test_exponents_are_slopes_in_the_logarithm():
    rows = [
        {"positions": n, "contender": "lambdanets", "pass": "forward", "median_ms": 1e-5 * n**1.5, "noisy": ""}
        for n in (49, 800, 1600, 3000)
    ]
    assert growth.exponents(rows) == {("lambdanets", "forward"): pytest.approx(1.5)}
    rows[1]["median_ms"] *= 10
    assert growth.exponents(rows)["lambdanets", "forward"] < 1
    rows[1]["noisy"] = "yes"
    assert growth.exponents(rows) == {("lambdanets", "forward"): pytest.approx(1.5)}
    assert "| fit from n = 700, without ~ | n^1.50 / " in bench_report.growth_table(rows)
    rows[0]["noisy"], rows[1]["noisy"] = "yes", ""
    assert "| fit from n = 700 |" in bench_report.growth_table(rows)


def test_growth_visits_every_size_three_times(growing):
    rows, visits = growing
    assert len(set(visits)) == 4  # two sizes in two passes
    assert visits == visits[:4] * 3
    # Three of a visit for the slowest call; on a busy machine one that takes part in every few turns has others go on.
    assert min(row["turns"] for row in rows) >= 9


def test_fit_finds_the_constants_that_made_the_times():
    generator = torch.Generator().manual_seed(0)
    works = (torch.rand(20, 3, generator=generator).double() * torch.tensor([1e9, 1e6, 50.0])).tolist()
    truth = [2e-11, 1e-9, 5e-6]
    seconds = [sum(c * w for c, w in zip(truth, work, strict=True)) for work in works]
    assert calibrate.fit(works, seconds) == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("longest", [calibrate.LONGEST_SECONDS, 0.0], ids=["fast", "slow everywhere"])
def test_calibration_covers_every_kernel(monkeypatch, longest):
    monkeypatch.setattr(calibrate, "LONGEST_SECONDS", longest)
    cases = [Case(1, (5, 5), 16), Case(1, (5, 5), 16, 3), Case(1, (4, 4), 16)]
    constants = calibrate.calibrate(cases, seconds=0, max_seconds=0)
    assert set(constants["devices"]["cpu"]) == set(PRESENT)
    for found in constants["devices"]["cpu"].values():
        assert set(found) == {"forward", "backward"}
        assert all(any(values) for values in found.values())
    assert constants["measured_on"]["torch"] == torch.__version__.split("+")[0]


def test_times_of_problems_that_are_too_slow_are_not_fitted_where_there_are_others(monkeypatch):
    quick = [calibrate.KernelTime("one", "forward", (1e6 * i, 1e4 * i, 1.0), 1e-3 * i, slow=False) for i in (1, 2, 3)]
    slow = calibrate.KernelTime("one", "forward", (1e6, 1e4, 1.0), 100.0, slow=True)
    found = {}
    for name, times in (("without", quick), ("with", [*quick, slow])):
        monkeypatch.setattr(calibrate, "time_kernels", lambda case, seconds, most, times=times: times)
        found[name] = calibrate.calibrate([Case(1, (5, 5), 16)])["devices"]
    assert found["with"] == found["without"]


def test_files_of_earlier_versions_have_no_commit(rows, tmp_path):
    older = [{name: value for name, value in row.items() if name not in ("commit", "date")} for row in rows]
    write_csv(tmp_path / "old.csv", older)
    again = read_rows(tmp_path / "old.csv")
    assert bench_report.environment_line(again).endswith(f"Python {rows[0]['python']}")
    newer = [{**row, "commit": "abc1234", "date": "2026-01-01"} for row in rows]
    newer[-1] |= {"commit": "def5678", "date": "2026-01-02"}
    assert bench_report.environment_line(newer).endswith(
        f", lambdanets {rows[0]['lambdanets']} (abc1234, def5678); 2026-01-01, 2026-01-02"
    )


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
        bench_report.plot_bench(rows, tmp_path / "bench.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_table_is_made_of_a_gpus_results(rows, tmp_path):
    on_gpu = [{**{name: row[name] for name in ("case", "contender", "pass")}, "card": "H100"} for row in rows]
    (path,) = write_cuda(on_gpu, tmp_path)
    with pytest.raises(ValueError, match=r"bench-cuda\.csv is of the benchmark on a GPU"):
        table_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("\0\udcff", "is damaged: it is not UTF-8"), ("a,b\n1,2\n", "not a result file"), ("", "not a result file")],
)
def test_a_file_that_is_no_result_is_refused(content, message, tmp_path):
    path = tmp_path / "some.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_rows(path)
    with pytest.raises(FileNotFoundError, match="'lambdanets bench' writes"):
        read_rows(tmp_path / "missing.csv")
