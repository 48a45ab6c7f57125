import inspect
import json
from importlib import import_module

import pytest
import timm
import timm.optim

from lambdanets.training import Augmentation, Recipe, get_recipe, list_recipes
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.recipes.imagenet_350 import BY_MODEL
from lambdanets.training.rules import DECIDED

pytestmark = pytest.mark.smoke


def make(**fields):
    return Recipe(**{"name": "r", "model": "m", "data": "digits", **fields})


def test_recipes_of_the_package():
    expected = "cifar10 digits fashion-mnist finetune image-folder imagenet-350 imagenet-90"
    assert set(list_recipes()) >= set(expected.split())


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_opens_with_command_hardware_and_result(name):
    words = inspect.getdoc(import_module(f"lambdanets.training.recipes.{name.replace('-', '_')}"))
    assert "\n    " in words
    assert "lambdanets train" in words
    # The paragraph that make_tables.py writes tells both.
    assert "\nMeasured (results/training.json; " in words or ("Hardware: " in words and "Result: " in words)


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_stands_on_what_exists(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert timm.is_model(recipe.model)
    assert recipe.optimizer in timm.optim.list_optimizers()
    InputTransform(32, 3, (0.5,) * 3, (0.5,) * 3).build_training(recipe.augmentation)


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_reads_back_from_json(name):
    recipe = get_recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_papers_90_epochs():
    recipe = get_recipe("imagenet-90")
    assert (recipe.epochs, recipe.warmup_epochs, recipe.weight_decay) == (90, 5, 1e-4)
    assert recipe.override(batch_size=512).scaled_lr == pytest.approx(0.2)


def test_override_leaves_out_none():
    recipe = make(epochs=7, seed=3)
    assert recipe.override(epochs=None, seed=0) == make(epochs=7, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", -4),
        ("workers", -1),
        ("seed", -1),
        ("image_size", 0),
        ("cpu_threads", 0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("weight_decay", float("inf")),
        ("label_smoothing", 1.0),
        ("drop_rate", 1.0),
        ("drop_path_rate", -0.1),
        ("crop_pct", 0.0),
        ("ema_decay", 1.0),
        ("clip_grad", 0.0),
        ("precision", "fp8"),
        ("validation_share", 0.0),
        ("accumulate", 0),
        ("layer_decay", 0.0),
        ("frozen_stages", -1),
        ("schedule", "linear"),
        ("min_lr", -1.0),
        ("decay_epochs", 0),
        ("decay_rate", 1.5),
        ("compile", 1),
        ("channels_last", None),
    ],
)
def test_bad_field_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=f"^{field} is {value!r}; use "):
        make(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "random"),
        ("padding", -1),
        ("scale", (0.5, 1.5)),
        ("scale", (0.9, 0.1)),
        ("horizontal_flip", 1.1),
        ("random_erasing", -0.1),
        ("rotation", 200),
        ("mixup", -0.1),
        ("cutmix", float("nan")),
        ("mix_probability", 2),
    ],
)
def test_bad_augmentation_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        Augmentation(**{field: value})


def test_unknown_recipe_shows_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'imagenet90'\. Did you mean 'imagenet-90'"):
        get_recipe("imagenet90")


def test_unknown_field_is_told():
    with pytest.raises(ValueError, match=r"epoch is no field of a recipe; did you mean 'epochs'\?"):
        Recipe.from_dict({**make().to_dict(), "epoch": 1})
    with pytest.raises(ValueError, match=r"flip is no field of a recipe; "):
        make().override(flip=1)


def test_fields_of_the_augmentation_by_their_own_names():
    changed = make().replace({"horizontal_flip": 0.5, "ema_decay": None, "epochs": 2})
    assert changed == make(epochs=2, augmentation=Augmentation(horizontal_flip=0.5))


def test_depth_decides_size_and_regularisation():
    small, large = get_recipe("imagenet-350"), get_recipe("imagenet-350", "lambda_resnet420")
    assert (large.model, large.image_size, large.drop_rate) == ("lambda_resnet420", 320, 0.3)
    assert small.image_size < large.image_size
    assert small.override(batch_size=4096).scaled_lr == pytest.approx(1.6)
    family = [f"lambda_resnet{depth}" for depth in (101, 152, 200, 270, 350, 420)]
    assert list(BY_MODEL) == family
    for name in family:
        assert get_recipe("imagenet-350", name).image_size == timm.get_pretrained_cfg(name).input_size[-1]


@pytest.mark.parametrize("name", sorted(DECIDED))
def test_arguments_that_are_left_out_of_stored_models_are_refused_in_a_recipe(name):
    with pytest.raises(ValueError, match=rf"model_kwargs\.{name} is 1; "):
        Recipe(name="test", model="lambda_resnet_tiny", data="digits", model_kwargs={name: 1})
