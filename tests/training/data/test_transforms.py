import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.training import Augmentation
from lambdanets.training.data.transforms import InputTransform, read_image

GREY = InputTransform(8, 1, (0.25,), (0.5,))
COLOUR = InputTransform(8, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop_pct=0.8)


def random_image(height, width, channels):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))


@pytest.mark.parametrize("transform", [GREY, COLOUR])
def test_reads_back(transform):
    assert InputTransform.from_dict(transform.to_dict()) == transform


def test_image_of_the_right_size_is_only_scaled():
    image = random_image(8, 8, 1)
    expected = (torch.from_numpy(np.array(image)) / 255 - 0.25) / 0.5
    torch.testing.assert_close(GREY.build()(image), expected[None])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (5, 40), (40, 5), (33, 31)])
def test_every_size_becomes_the_input_size(height, width):
    assert COLOUR.build()(random_image(height, width, 3)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(crop="padded", padding=2, horizontal_flip=0.5, rotation=10, random_erasing=0.5),
        Augmentation(crop="resized", horizontal_flip=0.5, random_erasing=0.5, auto_augment="rand-m15-n2"),
    ],
)
def test_training_images_have_the_input_size(augmentation):
    assert COLOUR.build_training(augmentation)(random_image(20, 30, 3)).shape == (3, 8, 8)


def test_no_augmentation_is_the_plain_transform():
    image = random_image(20, 30, 3)
    torch.testing.assert_close(COLOUR.build_training(Augmentation())(image), COLOUR.build()(image))


def test_flip_mirrors_left_and_right():
    image = random_image(8, 8, 1)
    flipped = GREY.build_training(Augmentation(horizontal_flip=1.0))(image)
    torch.testing.assert_close(flipped, GREY.build()(image).flip(-1))


def test_padded_crop_shifts_the_image():
    image = random_image(8, 8, 1)
    torch.manual_seed(0)
    shifted = [GREY.build_training(Augmentation(crop="padded", padding=1))(image) for _ in range(50)]
    plain = GREY.build()(image)
    assert any(torch.equal(crop, plain) for crop in shifted)
    assert any(torch.equal(crop[:, 1:, 1:], plain[:, :-1, :-1]) for crop in shifted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 2, "mean": (0.0, 0.0), "std": (1.0, 1.0)}, "channels is 2"),
        ({"mean": (0.0,)}, "mean is .* 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, r"std\[0\] is 0\.0; use numbers above 0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        InputTransform(**{**COLOUR.to_dict(), **fields})


def test_unknown_field():
    with pytest.raises(ValueError, match="does not read"):
        InputTransform.from_dict({"size": 8})


def test_policy_needs_resized_crop():
    with pytest.raises(ValueError, match="auto_augment is 'rand-m9'"):
        COLOUR.build_training(Augmentation(auto_augment="rand-m9"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_colours_are_converted(tmp_path, stored, mode):
    path = tmp_path / ("a.tif" if stored == "CMYK" else "a.png")
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(stored).save(path)
    image = read_image(path, mode)
    assert (image.mode, image.size) == (mode, (4, 3))
    assert np.asarray(image).min() == 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png", "L")).tolist() == [[0, 128, 255]]


def test_photographs_are_turned_upright(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", "RGB").size == (2, 4)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "bit"])
def test_unreadable_image_is_named(tmp_path, damage):
    path = tmp_path / "broken.png"
    random_image(30, 30, 3).save(path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not an image",
            "truncated": content[: len(content) // 2],
            "bit": content[:40] + b"\xff\xff\xff\xff" + content[44:],
        }[damage]
    )
    with pytest.raises(ValueError, match=r"broken\.png cannot be read: \w+") as error:
        read_image(path, "RGB")
    assert str(tmp_path) in str(error.value)
    assert ("it is empty" in str(error.value)) == (damage == "empty")


def test_missing_image_and_folder_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        read_image(tmp_path / "none.png", "L")
    with pytest.raises(ValueError, match="is a folder; give image files"):
        read_image(tmp_path, "L")
