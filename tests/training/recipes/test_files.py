"""Recipes in YAML and Python files, and in words of a command line."""

import pytest

from lambdanets.training import get_recipe, list_recipes
from lambdanets.training.recipes.files import load_recipe, parse_choices, read_recipe, write_recipe

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_reads_back(tmp_path, name):
    file = tmp_path / "x.yaml"
    file.write_text(write_recipe(get_recipe(name)))
    assert read_recipe(file) == get_recipe(name)


def test_texts_stay_texts(tmp_path):
    file = tmp_path / "x.yaml"
    texts = dict.fromkeys(("1e-3", "3", "no", "null", "~", "é"), True) | {"words": ["1e-3", "3", "no", "null", "2.0"]}
    recipe = get_recipe("digits").override(model_kwargs=texts)
    file.write_text(write_recipe(recipe), encoding="utf-8")
    assert read_recipe(file) == recipe


def test_what_is_not_in_a_file_has_its_default(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("model: resnet18\nlr: 1e-3\naugmentation: {crop: resized, scale: [0.5, 1]}\n")
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.data, recipe.epochs, recipe.lr) == ("mine", None, 10, 1e-3)
    assert recipe.augmentation.scale == (0.5, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nepoch: 3", r"epoch is no field of a recipe; did you mean 'epochs'\?"),
        ("model: m\naugmentation: {crops: none}", r"augmentation.crops is no field of a recipe; did you mean 'crop'\?"),
        ("model: m\n3: 4", "3 is no field of a recipe"),
        ("epochs: 3", "model is missing"),
        ("model: m\nepochs: many", "epochs is 'many'; use an integer"),
        ("model: m\naugmentation: {crop: round}", r"augmentation\.crop is 'round'; use one of"),
        ("model: m\nmodel: n", "the key 'model' occurs twice"),
        ("model: &a m\nname: *a", r"a reference \(\*\) is not taken"),
        ("- model", r"holds \['model'\]; a recipe has names"),
        ("model: [", "is no YAML of plain values"),
        ("{" * 1500, "is no YAML of plain values"),
        ("model: !!python/object/apply:os.mkdir [made]", "is no YAML of plain values"),
        ("model: m\nmodel_kwargs: {checkpoint_path: x}", "model_kwargs.checkpoint_path is 'x'; weights to start from"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^bad\.yaml.*{message}"):
        load_recipe("bad.yaml")
    assert not (tmp_path / "made").exists()


PROGRAM = """
from lambdanets.training import Recipe
RECIPE = Recipe(name="own", model="resnet18", data=None, epochs=2 + 1)
"""


def test_python_files_are_the_users_programs(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(PROGRAM)
    assert load_recipe(str(file)).epochs == 3
    file.write_text("RECIPE = 3")
    with pytest.raises(ValueError, match=r"own\.py must set RECIPE to a lambdanets\.training\.Recipe, and RECIPE is 3"):
        load_recipe(str(file))
    # In a folder that a training wrote it may be a stranger's.
    file.write_text(PROGRAM + "(__import__('pathlib').Path(__file__).parent / 'made').touch()")
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(ValueError, match="is a program in a run folder, which is not run"):
        load_recipe(str(file))
    assert not (tmp_path / "made").exists()


def test_words_of_a_command_line():
    words = {"epochs": "3", "lr": "1e-3", "clip_grad": "None", "data": "none", "model": "none", "seed": "x"}
    assert parse_choices({**words, "compile": False}) == {
        "epochs": 3,
        "lr": 1e-3,
        "clip_grad": None,
        "data": None,
        "model": "none",  # a model is never None
        "seed": "x",  # for the field's own rule to refuse
        "compile": False,
    }
