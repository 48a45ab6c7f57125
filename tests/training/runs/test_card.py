import json

import pytest

from lambdanets.training import Run
from lambdanets.training.runs.card import model_card


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "lambdanets train --recipe digits"),
        (
            {
                "cpu_threads": 2,
                "clip_grad": 0.5,
                "model_kwargs": {"stages": "LLLL"},
                "channels_last": True,
                "ema_decay": None,
            },
            """lambdanets train --recipe digits --model-kwargs '{"stages": "LLLL"}' --clip-grad 0.5 --ema-decay none"""
            " --channels-last --cpu-threads 2",
        ),
        ({"data": "/my/photos", "augmentation": {"scale": [0.5, 1.0]}}, "--data photos/ --scale 0.5,1.0"),
        ({"name": "mine"}, "by a recipe of the user's, mine"),
    ],
)
def test_the_command_has_what_the_recipe_does_not_say(tmp_path, changes, command):
    run = Run.open_trained("lambda_resnet_tiny.digits")
    config = json.loads(json.dumps(run.config))
    nested = {"augmentation": {**config["recipe"]["augmentation"], **changes.get("augmentation", {})}}
    config["recipe"] |= changes | nested
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert command in model_card(Run.open(tmp_path), "name", "address")
