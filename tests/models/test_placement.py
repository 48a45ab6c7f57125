"""Words for where lambda layers go."""

import pytest

from lambdanets.models.placement import format_placement, place_blocks


@pytest.mark.parametrize(
    ("stages", "words", "short"),
    [
        ("CCLL", ("CCC", "CCCC", "LLLLLL", "LLL"), "CCLL"),
        ("C-C-CL-L", ("CCC", "CCCC", "CLCLCL", "LLL"), "C-C-CL-L"),
        (("CCL", "CL", "L", "C"), ("CCL", "CLCL", "LLLLLL", "CCC"), "CCL-CL-L-C"),
        ("C-CCCCCL-LCCC-L", ("CCC", "CCCC", "LCCCLC", "LLL"), "C-C-LCCC-L"),
    ],
)
def test_patterns_repeat_over_the_blocks(stages, words, short):
    assert place_blocks(stages, (3, 4, 6, 3)) == words
    assert format_placement(words) == short
    assert place_blocks(short, (3, 4, 6, 3)) == words


@pytest.mark.parametrize("stages", ["CCL", "CCLLL", "ccll", "CC-LL", "C-C-C-", "", ("C", "C", "", "L"), (1, 2, 3, 4)])
def test_refuses(stages):
    with pytest.raises(ValueError, match=r'stages must be one letter a stage.*as "C-C-CL-L".*got'):
        place_blocks(stages, (3, 4, 6, 3))


def test_names_stand_for_letters():
    names = ("convolution", "C", "axial self-attention", "lambda layer")
    assert place_blocks(names, (1, 2, 3, 1)) == ("C", "CC", "XXX", "L")
    with pytest.raises(ValueError, match="did you mean 'axial self-attention'"):
        place_blocks(("C", "C", "axial self-atention", "L"), (1, 1, 1, 1))
