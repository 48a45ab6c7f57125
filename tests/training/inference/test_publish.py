"""What timm loads of a published run."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import SafetensorError

import lambdanets  # noqa: F401  # registers the models
from lambdanets.models.shipped import shipped_folder
from lambdanets.training import Recipe, Run, publish_run, train

NAME = "lambda_resnet_tiny.digits"


def test_timm_loads_what_was_published(tmp_path):
    name = publish_run(NAME, f"local-dir:{tmp_path}/my-model")
    model = timm.create_model(name, pretrained=True).eval()
    run, images = Run.open_trained(NAME), torch.rand(3, 1, 8, 8)
    assert torch.equal(model(images), run.load_model()(images))
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], tuple(data["mean"])) == ((1, 8, 8), run.transform.mean)
    assert tuple(data["std"]) == run.transform.std
    config = json.loads((tmp_path / "my-model" / "config.json").read_text())
    assert config["label_names"] == list(run.class_names)
    card = (tmp_path / "my-model" / "README.md").read_text(encoding="utf-8")
    assert "# my-model\n" in card
    assert f'timm.create_model("{name}", pretrained=True)' in card
    own = (shipped_folder(NAME) / "README.md").read_text(encoding="utf-8")
    assert card.endswith(
        own.replace(f"# {NAME}", "# my-model").replace(f'"{NAME}"', f'"{name}"')
    )  # data and licence too
    assert not list((tmp_path / "my-model").glob("*.bin"))  # no pickle


def test_the_hub_gets_the_same_folder(monkeypatch):
    calls = []

    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, repository, private, exist_ok):
            calls.append((repository, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert publish_run(NAME, "hf-hub:me/mine", private=True) == "hf-hub:me/mine"
    assert calls == [("me/mine", True, True), ("me/mine", ["README.md", "config.json", "model.safetensors"])]

    def refuse(self, *_, **__):
        raise OSError("no network.\nand more")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(ValueError, match=r"hf-hub:me/mine cannot be written: no network\. Log in with `hf auth login`"):
        publish_run(NAME, "hf-hub:me/mine")

    def refuse_without_words(self, *_, **__):
        raise ConnectionError

    monkeypatch.setattr(Hub, "create_repo", refuse_without_words)
    with pytest.raises(ValueError, match=r"hf-hub:me/mine cannot be written: ConnectionError\. Log in"):
        publish_run(NAME, "hf-hub:me/mine")


def test_folders_as_shells_complete_them(tmp_path, monkeypatch):
    publish_run(NAME, f"local-dir:{tmp_path}/out/")
    assert "# out\n" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(ValueError, match="give the folder's whole path, local-dir:/home/me/mine"):
        publish_run(NAME, "local-dir:~/mine")


def test_a_folder_is_not_private(tmp_path):
    with pytest.raises(ValueError, match="private is True, for a repository of the hub, and to is 'local-dir:"):
        publish_run(NAME, f"local-dir:{tmp_path}/x", private=True)


@pytest.mark.parametrize(
    "to", ["", "me/mine", "hub:me/mine", "hf-hub:mine", "hf-hub:me/", "hf-hub:a/b/c", "hf-hub:", "local-dir:"]
)
def test_other_places_are_refused(to):
    with pytest.raises(ValueError, match="use hf-hub:USER/NAME or local-dir:FOLDER"):
        publish_run(NAME, to)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match=r"full is not empty; give a new one"):
        publish_run(NAME, f"local-dir:{tmp_path}/full")


def test_an_unfinished_run_is_a_start_for_a_new_training(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "best.safetensors"):
        (run / name).write_bytes((Run.open_trained(NAME).path / name).read_bytes())
    publish_run(run, f"local-dir:{tmp_path}/start")
    assert "not measured: the training was not finished" in (tmp_path / "start" / "README.md").read_text("utf-8")
    recipe = Recipe(name="test", data="digits", model=f"local-dir:{tmp_path}/start", epochs=1)
    result = train(recipe, output=tmp_path / "new")
    assert result.test.top1 > 0.9


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_a_folder_that_cannot_be_written(tmp_path, monkeypatch, there):
    folder = tmp_path / "new"
    if there:
        folder.mkdir()

    def fail(tensors, path):
        path.write_bytes(b"a part")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match=r"cannot write .*/new: No space left on device\. Is the disk full"):
        publish_run(NAME, f"local-dir:{folder}")
    assert [path.name for path in tmp_path.rglob("*")] == (["new"] if there else [])


def test_what_is_not_read_back_as_it_was_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    with pytest.raises(RuntimeError, match=r"/new gives other outputs; this is a fault of lambdanets"):
        publish_run(NAME, f"local-dir:{tmp_path}/new")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_unicode(tmp_path):
    with pytest.raises(ValueError, match="is not valid UTF-8; rename it"):
        publish_run(NAME, f"local-dir:{tmp_path}/\udcff")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_is_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    publish_run(NAME, "local-dir:.")
    assert sorted(path.name for path in Path().iterdir()) == ["README.md", "config.json", "model.safetensors"]
