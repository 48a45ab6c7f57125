"""Cells as files: named by what they depend on, read back, damage named; which of them stand in one report."""

import json
from dataclasses import replace

import pytest

from lambdanets.experiments.compare.cell import (
    Done,
    Wanted,
    best_rate,
    cell_file,
    cell_key,
    coherent,
    label,
    read_cell,
    read_cells,
    study_version,
    write_cell,
)


def made(row="a", kind="train", scale="full", data="d1", **config):
    config = {"study": "toy", "kind": kind, "row": row, "scale": scale, **config}
    return Done(config, {"fingerprint": data}, study_version(1), {"test_top1": 0.5}, {"machine": "m"}, 1.5)


def written(folder, done):
    key = cell_key(done.config, done.data["fingerprint"], done.version)
    write_cell(folder, key, done)
    return cell_file(folder, key)


def test_a_cell_is_read_back(tmp_path):
    done = made(seed=1, lr=0.003)
    file = written(tmp_path, done)
    assert read_cell(file) == done
    assert read_cells(tmp_path) == ([done], [])
    assert label(done.config) == "train of a, seed 1, learning rate 0.003"


def test_the_name_depends_on_configuration_data_and_version():
    done = made(seed=1)
    names = {
        cell_key(config, data, version)
        for config in (done.config, {**done.config, "seed": 2})
        for data in ("d1", "d2")
        for version in (study_version(1), study_version(2))
    }
    assert len(names) == 8
    assert cell_key(dict(reversed(done.config.items())), "d1", study_version(1)) in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: cell.pop("result"), "a cell has the fields"),
        (lambda cell: cell.pop("digest"), "a cell has the fields"),
        (lambda cell: cell.update(format=1), "has the format 1 of a cell.* reads 2; move the file away"),
        (lambda cell: cell.update(result=[]), "result is no object"),
        (lambda cell: cell.update(seconds=True), "seconds is True"),
        (lambda cell: cell["config"].update(seed=2), "its content belongs to"),
        (lambda cell: cell["data"].update(fingerprint="d2"), "its content belongs to"),
        (lambda cell: cell.update(result={}), "not what was written"),
        (lambda cell: cell["result"].update(test_top1=97.0), "not what was written"),
        (lambda cell: cell["environment"].update(machine="n"), "not what was written"),
        (lambda cell: cell.update(seconds=2.5), "not what was written"),
        (lambda cell: cell.update(digest=None), "not what was written"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    file = written(tmp_path, made(seed=1))
    whole = written(tmp_path, made(seed=3))
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{file.name}.*{message}"):
        read_cell(file)
    cells, damaged = read_cells(tmp_path)
    assert cells == [read_cell(whole)]
    assert len(damaged) == 1


def test_results_come_back_as_json_has_them_and_nan_is_refused(tmp_path):
    """As JSON has them they have a digest: it does not tell a tuple from a list."""
    done = replace(made(), result={"turns": (1, 2.5), 10: None, 9: "\udcff"})
    assert read_cell(written(tmp_path, done)).result == {"turns": [1, 2.5], "10": None, "9": "\udcff"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(tmp_path / "nan", replace(made(), result={"test_top1": float("nan")}))
    assert not (tmp_path / "nan").exists()


def test_a_number_too_large_is_damage(tmp_path):
    file = written(tmp_path, made())
    file.write_text(file.read_text().replace(": 0.5", ": 1e999"))
    with pytest.raises(ValueError, match=rf"{file.name} is damaged: .*not JSON compliant"):
        read_cell(file)


def test_half_a_file_is_damaged(tmp_path):
    file = written(tmp_path, made())
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        read_cell(file)


def test_cells_of_one_report():
    full = [made(seed=seed, epochs=3) for seed in range(3)] + [made(kind="memory")]
    longer, quick, other = made(seed=0, epochs=9), made(scale="quick", epochs=3), made(data="d2", epochs=3)
    cells = [quick, other, longer, *full]
    assert coherent(cells) == (full, [quick, other, longer])
    assert coherent(cells, [quick]) == ([quick], [other, longer, *full])
    assert coherent([]) == ([], [])


def test_data_that_a_study_brings_itself_are_of_one_version():
    """As of a package that was updated in between; other data of the study, with their own rows, stay."""

    def brought(number, row, data, fingerprint):
        cells = [made(seed=seed, row=row, fingerprint=fingerprint) for seed in range(number)]
        return [replace(cell, config={**cell.config, "data": data}) for cell in cells]

    old, new = brought(2, "a", "leaf", "old"), brought(3, "a", "leaf", "new")
    graphs = brought(1, "g", "mutag", "m")
    assert coherent([*old, *new, *graphs]) == ([*new, *graphs], old)
    assert coherent([*old, *new, *graphs], like=[*old, *graphs]) == ([*old, *graphs], new)


def test_cells_that_a_report_was_asked_for():
    full, quick = [made(seed=seed, epochs=3) for seed in range(3)], made(scale="quick", epochs=3)
    other, longer = made(data="d2", epochs=3), made(seed=0, epochs=9)
    cells = [*full, quick, other, longer]
    assert coherent(cells, wanted=Wanted()) == coherent(cells)
    assert coherent(cells, wanted=Wanted(scale="quick"))[0] == [quick]
    assert coherent(cells, wanted=Wanted(fingerprint="d2"))[0] == [other]
    assert coherent(cells, wanted=Wanted(epochs=9)) == ([longer], [*full, quick, other])
    assert coherent(cells, wanted=Wanted(epochs=5)) == ([], cells)


def test_searches_of_longer_or_shorter_trainings_choose_no_rate():
    def search(lr, accuracy, epochs):
        data = {"fingerprint": "d1", "images": [9, 9999, 9]}
        return replace(made(kind="search", lr=lr, epochs=epochs), result={"validation_top1": accuracy}, data=data)

    now = [search(0.1, 0.6, 4), search(0.2, 0.7, 4)]
    before = [search(0.1, 0.9, 1), search(0.2, 0.1, 1)]
    low, high = ([made(seed=seed, epochs=4, lr=lr) for seed in range(2)] for lr in (0.1, 0.2))
    assert coherent([*before, *now, *low, *high]) == ([*now, *high], [*before, *low])
    assert coherent([*now, before[0]]) == (now, before[:1])  # no training is finished yet


@pytest.mark.parametrize(
    ("images", "accuracies", "rate"),
    [
        # The mean over seeds counts.
        (10**6, {0.3: [0.9, 0.1], 0.1: [0.6, 0.6]}, 0.1),
        (10**6, {0.1: [0.7], 0.2: [0.69], 0.3: [0.6]}, 0.1),
        # A standard error of 100 images is 0.046 at 0.7: within it the middle one, outside of it not.
        (100, {0.1: [0.7], 0.2: [0.66], 0.3: [0.6]}, 0.2),
        (100, {0.1: [0.7], 0.2: [0.65], 0.3: [0.6]}, 0.1),
        # Of two as near to the middle the better one, of equals the lower.
        (100, {0.1: [0.69], 0.2: [0.5], 0.3: [0.7]}, 0.3),
        (100, {0.1: [0.7], 0.2: [0.5], 0.3: [0.7]}, 0.1),
        (100, {0.1: [0.0], 0.2: [0.0], 0.3: [0.7]}, 0.3),
    ],
)
def test_the_rate_of_a_search_is_the_best_that_its_images_tell(images, accuracies, rate):
    searches = [
        replace(made("a", "search", lr=lr), result={"validation_top1": one}, data={"images": [9, images, 9]})
        for lr, found in accuracies.items()
        for one in found
    ]
    assert best_rate(searches) == rate


def test_the_rate_of_a_report_is_that_of_the_whole_search():
    """Also where trainings with others than the middle one, of an earlier search, are there."""
    searches = [
        replace(
            made("a", "search", lr=lr), result={"validation_top1": 0.7}, data={"fingerprint": "d1", "images": [9, 9]}
        )
        for lr in (0.1, 0.2, 0.3)
    ]
    low, middle, high = (made("a", seed=0, epochs=3, lr=lr) for lr in (0.1, 0.2, 0.3))
    assert coherent([*searches, low, middle, high]) == ([*searches, middle], [low, high])
    # While there is none with the rate of the search, the report is of one of the others.
    assert coherent([*searches, low, high]) == ([*searches, low], [high])


def test_trainings_with_a_rate_that_a_longer_search_no_longer_chooses_are_left_out():
    def search(row, lr, accuracy):
        result = {"validation_top1": accuracy}
        return replace(made(row, "search", lr=lr), result=result, data={"fingerprint": "d1", "images": [9, 99, 9]})

    searches = [search("a", 0.1, 0.6), search("a", 0.2, 0.8), search("b", 0.1, 0.7)]
    old, new = (made("a", seed=0, epochs=3, lr=lr) for lr in (0.1, 0.2))
    alone = made("b", seed=0, epochs=3, lr=0.3)  # of a search that is not there
    cells = [*searches, old, new, alone]
    assert coherent(cells) == ([*searches, new, alone], [old])
    assert coherent(cells, [searches[0], old]) == ([*searches, old, alone], [new])  # the run that just ended
