"""The study of sequences and graphs: splits, layers against loops, what is trained, what the cells come to."""

from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.study import Options, Place
from lambdanets.experiments.studies.structure import STUDY, networks, study
from lambdanets.experiments.studies.structure import data as data_of
from lambdanets.experiments.studies.structure.data import Graphs, Sequences
from lambdanets.experiments.studies.structure.networks import Attention, GraphNetwork, RelationalConvolution
from lambdanets.experiments.studies.structure.rows import ROWS, STRUCTURES, Structure, baseline


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins of aeon and grakel with a few sequences and graphs in the files' formats."""
    for package in ("aeon", "grakel"):
        (tmp_path / package).mkdir()
    leaves = tmp_path / "aeon" / "datasets" / "data" / "OSULeaf"
    leaves.mkdir(parents=True)
    for part, count in {"TRAIN": 20, "TEST": 6}.items():
        lines = [",".join(f"{(-1) ** i * j + i / 9}" for j in range(24)) + f":{1 + i % 2}" for i in range(count)]
        (leaves / f"OSULeaf_{part}.ts").write_text("#\n@classLabel true 1 2\n@data\n" + "\n".join(lines) + "\n")
    molecules = tmp_path / "grakel" / "tests" / "data" / "MUTAG"
    molecules.mkdir(parents=True)
    graphs = range(40)  # pairs of atoms, told apart by their bond
    files = {
        "node_labels": "".join("0\n1\n" for _ in graphs),
        "A": "".join(f"{2 * g + 1}, {2 * g + 2}\n{2 * g + 2}, {2 * g + 1}\n" for g in graphs),
        "edge_labels": "".join(f"{g % 2}\n{g % 2}\n" for g in graphs),
        "graph_indicator": "".join(f"{g + 1}\n{g + 1}\n" for g in graphs),
        "graph_labels": "".join(f"{2 * (g % 2) - 1}\n" for g in graphs),
    }
    for name, text in files.items():
        (molecules / f"MUTAG_{name}.txt").write_text(text)

    def found(name):
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / name)]
        return spec

    monkeypatch.setattr(data_of, "find_spec", found)
    for load in (data_of.load_leaves, data_of.load_molecules):
        load.cache_clear()
    yield tmp_path
    for load in (data_of.load_leaves, data_of.load_molecules):
        load.cache_clear()


@pytest.mark.parametrize(("package", "name"), [("aeon", "sequence"), ("grakel", "graph")])
def test_a_missing_package_is_named(package, name, monkeypatch):
    """Only that of the rows that are asked for."""
    monkeypatch.setattr(data_of, "find_spec", lambda asked: None)
    load = STRUCTURES[name].load
    load.cache_clear()
    row = baseline(name)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}, .*pip install 'lambdanets\[examples\]'"):
        STUDY.cells(Options(only=(row,)))


def test_a_package_without_the_files_is_told(packages):
    (file,) = (packages / "grakel").rglob("MUTAG_A.txt")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"grakel has no file .*MUTAG_A\.txt"):
        data_of.load_molecules()


@pytest.mark.skipif(not (find_spec("aeon") and find_spec("grakel")), reason="needs pip install 'lambdanets[examples]'")
def test_the_real_data():
    leaves, molecules = data_of.load_leaves(), data_of.load_molecules()
    assert leaves.x.shape == (442, 1, 427)
    assert (leaves.train, leaves.classes) == (200, 6)
    assert molecules.labels.bincount().tolist() == [63, 125]
    assert (len(molecules.nodes), len(molecules.edges)) == (3371, 7442)
    assert (molecules.batch[molecules.edge_index[0]] == molecules.batch[molecules.edge_index[1]]).all()


def test_splits():
    """Nothing is in two parts, folds cover all graphs, and each part has its share of a class."""
    labels = torch.arange(188) % 3 // 2
    graphs = Graphs(torch.ones(188, 1), torch.zeros(2, 0), torch.zeros(0, 1), torch.arange(188), labels, "")
    tested = []
    for fold in range(Graphs.FOLDS):
        parts = graphs.split(fold)
        assert torch.cat(parts).sort().values.tolist() == list(range(188))
        assert all(abs(labels[part].float().mean() - 1 / 3) < 0.06 for part in parts)
        tested += parts[2].tolist()
    assert sorted(tested) == list(range(188))
    sequences = Sequences(torch.zeros(188, 1, 1), labels, 100, "")
    train, choose, test = sequences.split(0)
    assert test.tolist() == list(range(100, 188))
    assert torch.cat([train, choose]).sort().values.tolist() == list(range(100))
    assert len(choose) == 20
    assert sequences.split(1)[1].tolist() != choose.tolist()


def test_inputs_of_graphs_are_those_of_each(packages):
    graphs = data_of.load_molecules()
    _, index, edges, batch, count = graphs.inputs(torch.tensor([5, 2]))
    assert count == 2
    assert batch.tolist() == [1, 1, 0, 0]  # in the order of the nodes
    assert index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]
    assert edges.argmax(1).tolist() == [0, 0, 1, 1]


def test_layers_against_loops():
    torch.manual_seed(0)
    attention, x = Attention(8, 5, num_heads=2), torch.randn(1, 8, 5)
    nn.init.normal_(attention.positions)
    q, k, v = attention.qkv(x)[0].view(3, 2, 4, 5)
    y = torch.zeros(2, 4, 5)
    for head in range(2):
        for i in range(5):
            bias = torch.stack([attention.positions[head, j - i + 4] for j in range(5)])
            weights = (q[head, :, i] @ k[head] / 2 + bias).softmax(0)
            y[head, :, i] = v[head] @ weights
    torch.testing.assert_close(attention(x), attention.out(y.reshape(1, 8, 5)))

    index, kinds = torch.tensor([[0, 1, 2, 2], [1, 2, 1, 0]]), torch.tensor([0, 1, 0, 1])
    edges, nodes = nn.functional.one_hot(kinds, 2).float(), torch.randn(3, 8)
    relational = RelationalConvolution(8, 2)
    matrices = relational.kinds.weight.view(2, 8, 8)
    expected = relational.own(nodes)
    expected[1] = expected[1] + matrices[0] @ (nodes[0] + nodes[2]) / 2
    expected[2] = expected[2] + matrices[1] @ nodes[1]
    expected[0] = expected[0] + matrices[1] @ nodes[2]
    torch.testing.assert_close(relational(nodes, index, edges, torch.zeros(3).long(), 1), expected)

    network = GraphNetwork(8, 2)
    sums = 1 * nodes
    for (source, target), kind in zip(index.T.tolist(), kinds.tolist(), strict=True):
        sums[target] += (nodes[source] + network.edge.weight[:, kind] + network.edge.bias).relu()
    torch.testing.assert_close(network(nodes, index, edges, torch.zeros(3).long(), 1), network.each(sums))


def test_it_runs(packages, tmp_path, monkeypatch):
    """Every row trains; those that see bonds tell pairs of atoms apart by them, and the one that does not cannot."""
    monkeypatch.setitem(STRUCTURES["sequence"].steps, "quick", 2)
    monkeypatch.setattr(networks, "DEPTH", 1)
    cells = STUDY.cells(Options(quick=True, seeds=2))
    assert [cell.config["row"] for cell in cells if cell.alone] == ["all rows of sequence", "all rows of graph"]
    trained = [cell for cell in cells if not cell.alone]
    assert [cell.config["row"] for cell in trained] == [
        name for name, kind in ROWS.items() for _ in range(2 if kind == "sequence" else 10)
    ]
    assert all(cell.config["fingerprint"] for cell in cells)
    done = []
    for cell in cells:
        config = cell.config if not cell.alone else {**cell.config, "seconds": [0.0, 0.0]}
        if config.get("seed", 0) > 0:
            continue
        if "lambda" not in config["row"] and config["structure"] == "graph":
            config = {**config, "steps": 2}
        result = STUDY.run(config, Place(tmp_path, None, None))
        done.append(Done(config, {}, {}, result, {}, 1.0))
    repeated = next(cell for cell in done if cell.row == "sequence: lambda")
    assert STUDY.run(repeated.config, Place(tmp_path, None, None)) == repeated.result
    assert repeated.result["examples"] == [16, 4, 6]
    outcome = STUDY.outcome(done)
    assert [table.name for table in outcome.tables] == ["sequence", "graph"]
    scores = {line[0]: line[2] for table in outcome.tables for line in table.rows}
    assert list(scores) == list(ROWS)
    assert scores["graph: lambda"].startswith("100.00")
    assert scores["graph: lambda, no edge labels"].startswith("50.00")
    assert [len(plot.series) for plot in outcome.plots] == [4, 4, 4, 4]
    assert all("x)" in line[-1] for table in outcome.tables for line in table.rows)
    claim = next(claim for claim in outcome.claims if "against graph: lambda, no edge labels" in claim.text)
    assert claim.text.startswith("graph: lambda: +50.00")
    assert sum("times the time of lambda" in claim.text for claim in outcome.claims) == 1


def test_times_are_compared_turn_by_turn():
    """The ratio of the medians would be 1."""
    _, attention, ours, _ = STRUCTURES["sequence"].rows
    turns = {attention: [2.0, 6.0, 30.0], ours: [1.0, None, 6.0]}
    times = {name: {"milliseconds": [6, 2, 30], "ratio": [1, 1, 1], "seconds": own} for name, own in turns.items()}
    config = {"study": "structure", "structure": "sequence", "kind": "speed", "row": "all rows", "scale": "full"}
    speed = Done(config, {}, {}, {"rows": times}, {}, 1.0)
    outcome = STUDY.outcome([speed, cell(attention, 0, 0.9), cell(ours, 0, 0.9)])
    (claim,) = [claim for claim in outcome.claims if "the time of lambda" in claim.text]
    assert claim.text.startswith("sequence: attention takes 3.50 (2.00 to 5.00) times the time of lambda;")
    assert claim.held is True


def test_times_of_several_runs_are_compared_within_one():
    """As after a second run with --only, of one row and of fewer turns."""
    _, attention, ours, _ = STRUCTURES["sequence"].rows

    def run(date, turns):
        times = {
            name: {"milliseconds": [own[0], 1, 9], "ratio": [1, 1, 1], "seconds": own} for name, own in turns.items()
        }
        config = {"study": "structure", "structure": "sequence", "kind": "speed", "row": "all rows", "scale": "full"}
        return Done(config, {}, {}, {"rows": times}, {"date": date}, 1.0)

    runs = [run("2026-02-02", {ours: [5.0, 5.0]}), run("2026-01-01", {ours: [1.0] * 3, attention: [2.0] * 3})]
    outcome = STUDY.outcome([*runs, cell(attention, 0, 0.9), cell(ours, 0, 0.9)])
    (claim,) = [claim for claim in outcome.claims if "the time of lambda" in claim.text]
    assert claim.text.startswith("sequence: attention takes 2.00 (2.00 to 2.00) times the time of lambda;")
    assert {line[0]: line[-1] for line in outcome.tables[0].rows} == {attention: "2.0 (1.00x)", ours: "5.0 (1.00x)"}


def cell(row, seed, top1=None, **result):
    kind = ROWS[row]
    config = {"study": "structure", "structure": kind, "kind": "train", "scale": "full", "row": row, "seed": seed}
    config |= {"data": "d", "steps": 3, "batch": 4, "rates": [1.0, 2.0], "norms": ["batch"]}
    result = {"parameters": 10, "examples": [3, 2, 1], "norm": "batch", "lr": 1.0, **result} | (
        {"test_top1": top1} if top1 else {}
    )
    return Done(config, {}, {}, result, {}, 1.0)


def test_rows_that_lose_are_marked():
    first, _, ours, local = STRUCTURES["sequence"].rows
    cells = [cell(first, seed, 0.9 + seed / 100) for seed in range(3)]
    cells += [cell(ours, seed, 0.8 + seed / 90) for seed in range(3)]
    cells += [cell(local, seed, 0.91 + seed / 100, lr=2.0) for seed in range(2)] + [cell(local, 2, diverged="NaN")]
    outcome = STUDY.outcome(cells)
    (table,) = outcome.tables
    assert [line[0] for line in table.rows] == [first, ours, local]
    assert table.bad == {1, 2}
    assert table.rows[1][3].startswith("-9.")
    assert table.rows[2][2].endswith("diverged with seed 2")
    assert table.rows[2][6] == "batch 1 (1x), batch 2 (2x)"
    # One has seeds that diverged, which leave no verdict.
    assert [claim.held for claim in outcome.claims] == [False, None]
    assert [len(plot.series) for plot in outcome.plots] == [3, 0]


def test_the_best_norm_and_rate_by_validation_are_tested(monkeypatch):
    scores = {("batch", 1.0): (0.5, 0.7), ("batch", 2.0): (0.4, 0.1), ("batch", 3.0): (0.9, float("nan"))}
    scores |= {("layer", 1.0): (0.4, 0.1), ("layer", 2.0): (0.5, 0.6), ("layer", 3.0): (0.9, 0.1)}

    def network(config, row, norm, seed):
        made = nn.Linear(1, 1)
        made.norm = norm
        return made

    def fit(network, data, train, rate, **options):
        network.rate = rate
        return [float("nan") if rate == 3.0 else 1.0]

    data = Sequences(torch.zeros(10, 1, 1), torch.arange(10) % 2, 5, "")
    monkeypatch.setitem(STRUCTURES, "sequence", Structure("d", lambda: data, {}, "seed", {}))
    monkeypatch.setattr(study, "_network", network)
    monkeypatch.setattr(study, "fit", fit)
    monkeypatch.setattr(study, "score", lambda network, data, examples: scores[network.norm, network.rate])
    config = {
        "kind": "train",
        "structure": "sequence",
        "row": "r",
        "norms": ["batch", "layer"],
        "rates": [1.0, 2.0, 3.0],
    }
    config |= {"seed": 0, "steps": 1, "batch": 1}
    result = STUDY.run(config, None)
    found = [result[name] for name in ("norm", "lr", "validation_top1", "parameters")]
    assert found == ["layer", 2.0, 0.5, 2]
    only = STUDY.run({**config, "rates": [3.0]}, None)
    assert "test_top1" not in only
    assert STUDY.line(only) == "diverged"
