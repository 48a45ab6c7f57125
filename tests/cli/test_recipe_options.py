"""The options of ``lambdanets train`` are the fields of a recipe, in the words of its class."""

import dataclasses
import inspect
import re

import pytest
from typer.main import get_command

from lambdanets.models.shipped import shipped_folder
from lambdanets.training import Augmentation, Recipe, list_recipes
from lambdanets.training.recipes.files import read_recipe, write_recipe
from lambdanets_cli import app as cli
from lambdanets_cli.recipe_options import recipe_fields, recipe_names

pytestmark = pytest.mark.smoke


def all_fields():
    found = [field for kind in (Recipe, Augmentation) for field in dataclasses.fields(kind)]
    return [field for field in found if field.name not in ("name", "augmentation")]


def test_every_field_has_an_option_with_its_words():
    fields = recipe_fields()
    assert [(field.name, field.kind) for field in fields] == [(field.name, field.type) for field in all_fields()]
    assert len({field.option for field in fields}) == len(fields)
    for field in fields:
        owner = Augmentation if field.name in Augmentation.__dataclass_fields__ else Recipe
        assert field.owner == owner.__name__
        entry = f"\n    {field.name}: "
        words = inspect.cleandoc(owner.__doc__).partition(entry)[2]
        assert " ".join(words.split()).startswith(field.words)
        assert len(field.words) > 5
    train = get_command(cli.app).commands["train"]
    options = {name: option for option in train.params for name in option.opts}
    for field in fields:
        shown = options[field.option].help
        assert unmarked(shown) == unmarked(field.words)
        assert shown.count('"') % 2 == 0
        assert "None" not in shown  # it is typed as none


def unmarked(text):
    return re.sub(r'["`\\]', "", text).lower()


def test_names_of_the_help_are_the_recipes():
    assert recipe_names() == list_recipes()
    (option,) = [option for option in get_command(cli.app).commands["train"].params if option.name == "recipe"]
    assert all(name in option.help for name in list_recipes())


@pytest.fixture
def print_recipe(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["lambdanets", "train", "--print-recipe", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_options_set_their_fields(print_recipe, tmp_path):
    """All kinds: whole and other numbers, words, flags, pairs, YAML, and none."""
    words = {
        "--epochs": 3,
        "--lr": "1e-3",
        "--schedule": "one-cycle",
        "--ema-decay": "none",
        "--model-kwargs": "{stem_stride: 2}",
        "--crop": "resized",
        "--scale": "0.2,0.9",
        "--mixup": 0.2,
        "--clip-grad": 1,
    }
    code, out, error = print_recipe(*[word for item in words.items() for word in item], "--compile")
    assert code == 0, error
    (tmp_path / "mine.yaml").write_text(out)
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert recipe.name == "digits"
    assert (recipe.epochs, recipe.lr, recipe.schedule, recipe.ema_decay) == (3, 1e-3, "one-cycle", None)
    assert (recipe.model_kwargs, recipe.clip_grad, recipe.compile) == ({"stem_stride": 2}, 1.0, True)
    assert (recipe.augmentation.scale, recipe.augmentation.mixup) == ((0.2, 0.9), 0.2)
    # What is printed is what would be run.
    code, again, _ = print_recipe("--recipe", tmp_path / "mine.yaml")
    assert (code, again) == (0, out)
    assert again == write_recipe(recipe)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs three", "epochs is 'three'; use an integer"),
        ("--epochs none", "epochs is 'none'; use an integer"),
        ("--image-size wide", "image_size is 'wide'; use an integer, or none"),
        ("--lr fast", "lr is 'fast'; use a number"),
        ("--lr inf", "lr is inf; use a finite number"),
        ("--scale 0.5", "scale is (0.5,); use two shares"),
        ("--schedule linear", "schedule is 'linear'; use one of cosine, step, one-cycle, constant"),
        ("--model-kwargs {a:", "model_kwargs is no YAML of plain values"),
        ("--model-kwargs 3", "model_kwargs is 3; use names with values"),
        ("--validation-share 0.7", "validation_share is 0.7; use a share above 0, to 0.5, or None"),
        ("--accumulate 0", "accumulate is 0; use an integer from 1"),
        ("--layer-decay 2", "layer_decay is 2.0; use a factor above 0"),
        ("--mixup -1", "mixup is -1.0; use a number from 0"),
        ("--recipe cifar", "unknown recipe 'cifar'. Did you mean 'cifar10'?"),
        ("--recipe no.yaml", "the file no.yaml does not exist"),
        ("--recipe no.py", "the recipe no.py does not exist"),
        ("--clip-mode agc", "clip_mode is 'agc'; it changes nothing without clip_grad; give both, or leave it out"),
        ("--momentum 0.5", "momentum is 0.5; it changes nothing without an optimizer with momentum, such as sgd"),
        ("--warmup-epochs 3 --schedule one-cycle", "it changes nothing without another schedule than one-cycle"),
        ("--min-lr 1e-5 --schedule step", "min_lr is 1e-05; it changes nothing without the schedule cosine"),
        ("--decay-epochs 3", "decay_epochs is 3; it changes nothing without the schedule step"),
        ("--decay-rate 0.5", "decay_rate is 0.5; it changes nothing without the schedule step"),
        ("--padding 3 --crop none", "padding is 3; it changes nothing without the crop padded"),
        ("--scale 0.5,1", "scale is (0.5, 1.0); it changes nothing without the crop resized"),
        ("--rotation 3 --crop resized", "rotation is 3.0; it changes nothing without another crop than resized"),
        ("--auto-augment rand-m9", "auto_augment is 'rand-m9'; it changes nothing without the crop resized"),
        ("--mix-probability 0.5", "mix_probability is 0.5; it changes nothing without mixup or cutmix"),
        ("--output x", "--output means nothing together with --print-recipe, which trains nothing"),
        ("--profile", "--profile means nothing together with --print-recipe"),
        ("--checkpoint-every 5", "--checkpoint-every means nothing together with --print-recipe"),
        ("--timeout 5", "--timeout means nothing together with --print-recipe"),
        ("--init-from no/where", "init_from is 'no/where', and nothing is there"),
        ("--init-from lambda_resnet_tiny.digit", "unknown weights 'lambda_resnet_tiny.digit'. Did you mean"),
        ("--init-from lambda_resnet50", "init_from is 'lambda_resnet50', a model that has no weights"),
    ],
)
def test_what_does_not_do_is_one_message(print_recipe, words, message):
    code, out, error = print_recipe(*words.split())
    assert (code, out) == (2, "")
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert message in error


def test_misspelt_option_names_the_nearest(print_recipe):
    code, _, error = print_recipe("--epoch", 3)
    assert code == 2
    assert "--epochs" in error


def test_recipe_by_the_models_depth(print_recipe):
    code, out, _ = print_recipe("--recipe", "imagenet-350", "--model", "lambda_resnet420", "--drop-rate", 0.1)
    assert code == 0
    assert "image_size: 320\n" in out
    assert "drop_rate: 0.1\n" in out
    assert "drop_path_rate: 0.2\n" in out


@pytest.mark.parametrize(
    "words",
    [
        "--clip-mode agc --clip-grad 0.1",
        "--momentum 0.5 --optimizer sgd",
        "--warmup-epochs 3",
        "--min-lr 1e-5 --schedule one-cycle",
        "--decay-epochs 3 --decay-rate 0.5 --schedule step",
        "--padding 3",
        "--scale 0.5,1 --crop resized --auto-augment rand-m9",
        "--rotation 3",
        "--mix-probability 0.5 --cutmix 1",
    ],
)
def test_pairs_of_options_that_count_together(print_recipe, words):
    code, _, error = print_recipe(*words.split())
    assert code == 0, error


def test_recipe_of_a_run_by_one_of_its_checkpoints(print_recipe):
    """As ``train --resume`` takes it."""
    run = shipped_folder("lambda_resnet_tiny.digits")
    code, out, _ = print_recipe("--resume", run / "checkpoint" / "epoch-00001-batch-0000002")
    assert code == 0
    assert out == print_recipe("--resume", run)[1]
    assert "model: lambda_resnet_tiny\n" in out
