"""The model card: the command of the training."""

import json
import re
import shlex

import pytest

from lambdanets.markdown_text import as_code
from lambdanets.models.shipped import FOLDER, shipped_names
from lambdanets.training import Run, plan_recipe
from lambdanets.training.inference.card import model_card
from lambdanets_cli.recipe_options import recipe_fields

DIGITS = "lambda_resnet_tiny.digits"


def altered(folder, changes, augmentation=None, spec="digits"):
    """The run of the shipped digits, with other choices."""
    config = json.loads((FOLDER / DIGITS / "config.json").read_text())
    config["recipe"] |= changes
    config["recipe"]["augmentation"] |= augmentation or {}
    config["data"]["spec"] = spec
    (folder / "config.json").write_text(json.dumps(config))
    return Run.open(folder)


def command(run):
    """The command that the card states."""
    return re.search(r"^\| command \| `(.*)` \|$", model_card(run, "name", "address"), re.MULTILINE)[1]


def read(words):
    """The recipe of a command's words."""
    kinds, given, words = {field.option: field for field in recipe_fields()}, {}, words[4:]
    while words:
        word = words.pop(0)
        name = word.replace("--no-", "--")
        given[kinds[name].name] = name == word if kinds[name].kind == "bool" else words.pop(0)
    return plan_recipe("digits", given)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("changes", "augmentation", "expected"),
    [
        ({}, {}, "lambdanets train --recipe digits"),
        ({"epochs": 3, "cpu_threads": None}, {}, "lambdanets train --recipe digits --epochs 3 --cpu-threads none"),
        (
            {"model_kwargs": {"stages": "LLLL"}, "channels_last": True, "lr": 1e-5},
            {"crop": "resized", "scale": [0.5, 1.0], "auto_augment": "rand-m9|x"},
            'lambdanets train --recipe digits --model-kwargs \'{"stages": "LLLL"}\' --lr 1e-05 --channels-last'
            r" --crop resized --scale 0.5,1.0 --auto-augment 'rand-m9\|x'",
        ),
        ({"model": "lambda_resnet50"}, {}, "lambdanets train --recipe digits --model lambda_resnet50"),
    ],
)
def test_the_command_has_what_the_recipe_does_not_say(tmp_path, changes, augmentation, expected):
    run = altered(tmp_path, changes, augmentation)
    assert command(run) == expected
    assert read(shlex.split(expected.replace(r"\|", "|"))) == run.recipe


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("imagefolder:/home/me/my photos", "'my photos/'"),
        ("fashion-mnist:/home/me/data", "fashion-mnist"),
        ("wds/:/home/me/shards", "wds/:shards/"),
        ("hfds/mnist", "hfds/mnist"),
    ],
)
def test_folders_of_the_user_are_named_by_their_last_part(tmp_path, spec, word):
    run = altered(tmp_path, {"data": "/home/me/x"}, spec=spec)
    assert command(run) == f"lambdanets train --recipe digits --data {word}"


def test_a_recipe_of_the_user_has_no_command(tmp_path):
    card = model_card(altered(tmp_path, {"name": "mine"}), "name", "address")
    assert "| command | `lambdanets train` by a recipe of the user's, mine |" in card


HOSTILE = [
    "<b>h</b>",
    "a|b",
    "`x`",
    "*x*",
    "_x_",
    "[a](b)",
    "a\u202eb",
    "a\tb\nc",
    "&amp;",
    "https://x.y",
    "~~x~~",
    "\\",
    "salt & pepper_mill",
]
SHOWN = [
    "&lt;b&gt;h&lt;/b&gt;",
    r"a\|b",
    r"\`x\`",
    r"\*x\*",
    r"\_x\_",
    r"\[a\](b)",
    r"a\\u202eb",
    r"a\\tb\\nc",
    "&amp;amp;",
    "https&#58;//x.y",
    r"\~\~x\~\~",
    r"\\",
    "salt & pepper_mill",
]


def test_names_in_the_card_are_text(tmp_path):
    run = altered(tmp_path, {"name": "a|`b`\n<i>"})
    run.config["class_names"] = HOSTILE
    run.config["versions"] = {"lambdanets": "<i>1</i>"}
    run.config["model"]["weights"] = "a|b\n\n# c"
    card = model_card(run, "# x\n<script>", 'local-dir:a"\u202e')
    assert card.startswith("# \\# x\\\\n&lt;script&gt;\n")
    assert card.splitlines()[2].endswith(f"pixels: {', '.join(SHOWN)}.")
    assert r"| trained by | recipe ``a\|`b`\n<i>``, 32 epochs, seed 0, from a\|b\\n\\n# c |" in card
    assert r"by a recipe of the user's, a\|\`b\`\\n&lt;i&gt; |" in card
    assert "lambdanets &lt;i&gt;1&lt;/i&gt; |" in card
    assert r'timm.create_model("local-dir:a\"\u202e", pretrained=True)' in card
    assert "<" not in card.replace("``a\\|`b`\\n<i>``", "")


def test_code_with_backticks_is_code():
    found = [as_code(words) for words in ("x", "a`b", "``x", "`", "a|b")]
    assert found == ["`x`", "``a`b``", "``` ``x ```", "`` ` ``", r"`a\|b`"]


def test_shipped_cards_are_what_their_runs_say():
    for name in shipped_names():
        card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
        data, licence = re.findall(r"^\| (?:data|licence of the data) \| (.*) \|$", card, re.MULTILINE)
        assert card == model_card(Run.open_trained(name), name, name, data, licence)
