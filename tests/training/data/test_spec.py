import pytest

from lambdanets.training.data import DataSpec


@pytest.mark.parametrize(
    ("text", "kind", "place", "label"),
    [
        ("digits", "digits", None, "digits"),
        ("digits:", "digits", "", "digits"),
        ("fashion-mnist:/data/f", "fashion-mnist", "/data/f", "fashion-mnist"),
        ("imagefolder:/home/me/my photos", "imagefolder", "/home/me/my photos", "my photos"),
        ("imagefolder:/home/a:b/photos", "imagefolder", "/home/a:b/photos", "photos"),
        ("imagefolder:/", "imagefolder", "/", "imagefolder"),
        ("hfds/uoft-cs/cifar10", "hfds/uoft-cs/cifar10", None, "hfds/uoft-cs/cifar10"),
        ("torch/cifar10:/data/t", "torch/cifar10", "/data/t", "torch/cifar10"),
        ("wds/:/data/shards", "wds/", "/data/shards", "wds/shards"),
        ("wds/", "wds/", None, "wds/"),
    ],
)
def test_a_specification_in_its_parts(text, kind, place, label):
    spec = DataSpec.parse(text)
    assert spec == DataSpec(kind, place)
    assert str(spec) == text
    assert spec.label == label
