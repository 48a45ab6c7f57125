"""``lambdanets kernels`` as a user types it."""

import re

import pytest
from typer.testing import CliRunner

from lambdanets.experiments.bench import constants
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets_cli.app import app

pytestmark = pytest.mark.smoke


def run(*words):
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=True)


def test_kernels_shows_all_with_reasons_and_the_choice():
    result = run("kernels", "--shape", "2,9,9,9,16")
    assert result.exit_code == 0
    assert all(name in result.output for name in GRID_KERNELS)
    assert "cannot run: it is for sequences and images, and this grid has rank 3" in result.output
    assert "chosen for" in result.output


def test_kernels_says_where_the_values_decide():
    """A transform spreads rounding errors: in a local context it is taken for values of like size only."""
    local = run("kernels", "--shape", "2,56,56,64", "--scope", "35").output
    assert re.search(r"by a factor above 64, (forward|backward) takes \w+ instead", local)
    everywhere = run("kernels", "--shape", "2,56,56,64").output.replace("\n", " ")
    # Every query sees all values; of the table it sees a part.
    assert "Where entries of the table differ in size by a factor above 64, forward takes query_first" in everywhere
    assert "Where values of a channel or entries of the table" in everywhere  # backward
    # A kernel that mixes channels is taken for channels of like size.
    mixes = any(GRID_KERNELS[row[0]].mixes_channels for row in re.findall(r"│ (\w+).*chosen for (forward)", everywhere))
    assert bool(re.search(r"Where channels differ in size by a factor above 64, \w+ takes", everywhere)) == mixes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "8,14"], "--shape must be B,LENGTH,DIM.*got '8,14'; for example --shape 8,14,14,256"),
        (["--shape", "8,a,3"], "got '8,a,3'"),
        (["--scope", "4"], "--scope must be odd and positive, one number or one for each of the 2 axes of --shape"),
        (["--scope", "3,5,7"], "got '3,5,7'"),
        (["--scope", "wide"], "got 'wide'"),
        (["--heads", "7"], "--heads must divide the channels 256 of --shape, got 7"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--dtype", "int8"], "--dtype must be one of float32.*got 'int8'"),
    ],
)
def test_kernels_refuses(words, message):
    result = run("kernels", *words)
    with pytest.raises(ValueError, match=message):
        raise result.exception


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_names_the_device_and_where_the_constants_are_from(device):
    output = run("kernels", "--device", device).output
    assert constants.device_name(device) in output
    assert constants.where_from(device) in output
