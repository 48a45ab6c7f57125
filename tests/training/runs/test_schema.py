"""A run folder is input: whatever lies in it gives a valid configuration or one error of ours."""

import copy
import inspect
import json
import math
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdanets.models.shipped import FOLDER, shipped_names
from lambdanets.training import Recipe, Run
from lambdanets.training.data import load_data
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.inference.card import model_card
from lambdanets.training.runs.model import build_model_for_size
from lambdanets.training.runs.overview import list_runs
from lambdanets.training.runs.schema import METRICS, read_config, read_metrics, read_result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(name="test", model="lambda_resnet_tiny", data="digits", model_kwargs={"stem_stride": 2})
    transform = InputTransform(8, 1, (0.5,), (0.5,))
    return Run.create(tmp_path_factory.mktemp("runs") / "run", recipe, load_data("digits"), transform)


def write(tmp_path, config):
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def changed(config, path, value):
    config = copy.deepcopy(config)
    *way, last = path.split(".")
    place = config
    for key in way:
        place = place[key]
    place[last] = value
    return config


def test_what_a_training_writes_is_valid(run):
    assert read_config(run.path / "config.json") == json.loads((run.path / "config.json").read_text())


NO_TEXT = [None, 3, 1.5, True, [], ["a"], {}, "", "\ud800"]
NO_SIZE = [0, -1, "64", 10**9, 1.5, True, [8], {}, 10**400]
BAD = [
    *(("model.name", value) for value in [*NO_TEXT, "local-dir:/x", "hf-hub:x/y", "no_such_model"]),
    *(("data.spec", value) for value in NO_TEXT),
    *(("recipe.name", value) for value in NO_TEXT),
    *(("recipe.optimizer", value) for value in NO_TEXT),
    *(("class_names", value) for value in [None, "ab", [], {}, ["a", None], ["a", 3], ["a", "a"], ["a", ""]]),
    *(("input.image_size", value) for value in [*NO_SIZE, None]),
    *(("recipe.image_size", value) for value in NO_SIZE),
    *(("recipe.batch_size", value) for value in [*NO_SIZE, None]),
    *(("recipe.workers", value) for value in [10000, "2", None, -1]),
    *(("recipe.seed", value) for value in [2**32, -1, None, "0"]),
    *(("recipe.lr", value) for value in [None, "1", [], -1, 10**400, True]),
    *(("recipe.precision", value) for value in [None, 3, ["fp32"], "fp8"]),
    *(
        ("recipe.augmentation", value)
        for value in [None, 3, [], "crop", {"crop": 1}, {"scale": 3}, {"scale": [None, 1]}]
    ),
    *(("recipe.colour", value) for value in [1]),
    *(("recipe", value) for value in [None, [], 3, "x", {}]),
    *(("input", value) for value in [None, [], 3, "x", {}]),
    *(("input.mean", value) for value in [None, 3, "0.5", [None], ["0.5"], [], [0.5, 0.5], [1e300]]),
    *(("input.std", value) for value in [None, [0], [-1], [1e-300]]),
    *(("input.channels", value) for value in [None, 2, "1", True, [1]]),
    *(("input.interpolation", value) for value in [None, 3, "random", "cubic"]),
    *(("data.images", value) for value in [None, 3, {"train": -1}, {"exam": 1}, {"train": "3"}]),
    *(("model.kwargs", value) for value in [None, 3, [], "x"]),
    *(("versions", value) for value in [3, {"torch": 3}, {"torch": None}]),
    ("unknown", 1),
]


def test_a_run_of_an_installed_package(run, tmp_path):
    """It has no commit."""
    config = read_config(write(tmp_path, changed(run.config, "versions.commit", "")))
    assert config["versions"]["commit"] == ""


@pytest.mark.parametrize(("field", "value"), BAD)
def test_one_error_names_file_field_and_value(run, tmp_path, field, value):
    file = write(tmp_path, changed(run.config, field, value))
    with pytest.raises(ValueError, match=r"[.?] Give a folder that") as error:
        read_config(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert field in message or "missing" in message or repr(field) in message or "does not read" in message
    if isinstance(value, (str, int)) and value not in ("", "\ud800") and value != 10**400 and field.count(".") == 1:
        assert repr(value) in message or "colour" in message or field == "recipe.augmentation", message


@pytest.mark.parametrize(
    "spec",
    [
        "wds/:pipe:touch hacked",
        "wds/:|touch hacked",
        "wds/x:s3://bucket",
        "wds/:http://host/x.tar",
        "hfds/x:https://host",
        "hfds/https://host/x",
        "wds/s3://bucket",
        "torch/x:////host",
        "hf-hub:name",
        "http://host/images",
        "imagefolder:http://host",
        "imagefolder:relative",
        "imagefolder:",
        "imagefolder",
        "fashion-mnist:relative",
        "digits:x",
        "colours",
        "other/x:y",
        "/",  # a folder that is there
        ".",
        "//",
    ],
)
def test_data_that_no_training_writes(run, tmp_path, spec):
    with pytest.raises(ValueError, match=r"data\.spec is ") as error:
        read_config(write(tmp_path, changed(run.config, "data.spec", spec)))
    assert repr(spec) in str(error.value)


@pytest.mark.parametrize(
    "spec",
    ["fashion-mnist:/a b|c", "imagefolder:/x", "imagefolder:C:\\x", "hfds/a/b-c.d", "wds/:/x", "torch/cifar10:data"],
)
def test_data_that_a_training_writes(run, tmp_path, spec):
    assert read_config(write(tmp_path, changed(run.config, "data.spec", spec)))["data"]["spec"] == spec


@pytest.mark.parametrize("place", ["model.kwargs", "recipe.model_kwargs"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"pretrained": True},
        {"pretrained_cfg": {"file": "x"}},
        {"pretrained_cfg_overlay": {"url": "x"}},
        {"checkpoint_path": "x"},
        {"cache_dir": "x"},
        {"block_args": {"url": "x"}},
        {"a": "http://host/x"},
        {"a": ["ok", "s3:bucket"]},
        {"a": "/etc/passwd"},
        {"a": {"b": "..\\x"}},
        {"a": "pipe:x"},
        {"a": 10**400},
        {"layers": [10**7, 1, 1, 1]},
        {"a": [[[[[[[[[[1]]]]]]]]]]},
        {"a": "\ud800"},
    ],
)
def test_model_arguments_that_name_files_or_addresses(run, tmp_path, place, kwargs):
    with pytest.raises(ValueError, match=place):
        read_config(write(tmp_path, changed(run.config, place, kwargs)))


@pytest.mark.parametrize("place", ["model.kwargs", "recipe.model_kwargs"])
@pytest.mark.parametrize("key", sorted(inspect.signature(build_model_for_size).parameters.keys() - {"kwargs"}))
def test_model_arguments_that_a_training_sets_itself(run, tmp_path, place, key):
    with pytest.raises(ValueError, match=rf"{place}\.{key} is 7; the .* sets? it; leave it out"):
        read_config(write(tmp_path, changed(run.config, place, {key: 7})))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"format": 1, "format": 1}', "the key 'format' occurs twice"),
        ('{"format": NaN}', "holds NaN"),
        ('{"format": -Infinity}', "holds -Infinity"),
        ("1" * 5000, "damaged"),
        ("", "damaged"),
        ("null", "is not a run's configuration"),
        ("3", "is not a run's configuration"),
        ('"format"', "is not a run's configuration"),
    ],
)
def test_json_that_is_no_configuration(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_config(write(tmp_path, content))
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, True, [1], 10**400])
def test_another_format(run, tmp_path, version):
    with pytest.raises(ValueError, match=r"config\.json has format .*; this version of lambdanets reads format 1"):
        read_config(write(tmp_path, changed(run.config, "format", version)))


def test_what_is_no_file_of_text(tmp_path):
    file = tmp_path / "config.json"
    file.mkdir()
    with pytest.raises(ValueError, match=r"config\.json is a folder, a pipe or a device"):
        Run.open(tmp_path)
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"config\.json is a folder, a pipe or a device"):
        Run.open(tmp_path)
    file.unlink()
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not UTF-8"):
        Run.open(tmp_path)
    with open(file, "wb") as opened:
        opened.truncate(10**9)
    with pytest.raises(ValueError, match=r"has 1,000,000,000 bytes"):
        Run.open(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_json_is_valid_or_one_error(run, tmp_path, data):
    config = copy.deepcopy(run.config)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(config))))
        new = data.draw(json_values)
        if not path:
            config = new
            break
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = new
    file = write(tmp_path, config)
    try:
        opened = Run.open(tmp_path)
    except ValueError as error:
        message = str(error)
    else:
        message = f"{file}"
        assert isinstance(opened.recipe, Recipe)
        assert opened.transform.channels in (1, 3)
        assert all(isinstance(name, str) for name in (*opened.class_names, opened.data_spec))
    assert str(file) in message
    message.encode()  # half of a surrogate pair could not be shown


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_one_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        Run.open(tmp_path)


RESULT = json.loads((FOLDER / shipped_names()[0] / "result.json").read_text())


@pytest.mark.parametrize(
    "result",
    [
        [],
        None,
        3,
        {},
        {"test": {"top1": 0.5}},
        *(changed(RESULT, "test", value) for value in [[], "x", {}, {"top1": 0.5}, 0.5]),
        *(changed(RESULT, "test.top1", value) for value in ["a", None, -0.1, 1.5, True]),
        *(changed(RESULT, "test.images", value) for value in ["a", None, 0, 0.5]),
        *(changed(RESULT, "status", value) for value in ["running", None, 3]),
        *(changed(RESULT, "epochs", value) for value in [-1, "2", None]),
        changed(RESULT, "validation", []),
        changed(RESULT, "more", 1),
    ],
)
def test_a_result_that_no_training_writes(run, tmp_path, result):
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"result\.json: \S.*Bring back the file that the training wrote"):
        read_result(tmp_path)
    shutil.copy(run.path / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"result\.json: "):
        model_card(Run.open(tmp_path), "name", "address")
    assert list_runs(tmp_path)[0].status == "damaged"


def test_results_that_a_training_writes(tmp_path):
    assert read_result(tmp_path) is None
    for name in shipped_names():
        assert read_result(FOLDER / name)["test"]["top1"] > 0.8
    for change in ({"test": None}, {"validation": None, "best_epoch": None, "epochs": 0, "status": "interrupted"}):
        (tmp_path / "result.json").write_text(json.dumps({**RESULT, **change}))
        assert read_result(tmp_path) == {**RESULT, **change}


def row(epoch, **values):
    return ",".join(str({**dict.fromkeys(METRICS, 0.5), "epoch": epoch, **values}[name]) for name in METRICS)


HEADER = ",".join(METRICS)


def metrics(tmp_path, *lines, header=HEADER):
    (tmp_path / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")
    return tmp_path / "metrics.csv"


def test_metrics_are_read(tmp_path):
    rows = read_metrics(metrics(tmp_path, row(1), row(2), row(3)), 2)
    assert [line["epoch"] for line in rows] == [1, 2]
    assert read_metrics(tmp_path / "none.csv", 0) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(1)], r"has 1 row, and this run has finished 2 epochs"),
        ([row(1), row(1)], "epoch is 1 in row 2"),
        ([row(1), row("x")], "row 2: could not convert"),
        ([row(1), row(2) + ",3"], f"has {len(METRICS) + 1} values, the header {len(METRICS)}"),
        ([row(1), row(2, train_loss="nan")], r"train_loss is nan; .*\(row 2\)"),
        ([row(1), row(2, train_loss=math.inf)], r"train_loss is inf"),
        ([row(1), '"'], "is damaged"),
    ],
)
def test_metrics_that_no_training_writes(tmp_path, lines, message):
    file = metrics(tmp_path, *lines)
    with pytest.raises(ValueError, match=message) as error:
        read_metrics(file, 2)
    assert str(file) in str(error.value)


def test_metrics_of_other_columns(tmp_path):
    with pytest.raises(ValueError, match="has the columns a, not epoch, train_loss"):
        read_metrics(metrics(tmp_path, "1", header="a"), 1)


def test_model_that_cannot_be_made_names_the_file(run, tmp_path):
    for kwargs in ({"stages": 3}, {"act_layer": "nothing"}, {"wings": 3}, {"stem_stride": "x"}):
        write(tmp_path, changed(run.config, "model.kwargs", kwargs))
        with pytest.raises(ValueError, match=r"config\.json: the model cannot be made"):
            Run.open(tmp_path).new_model()
