import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lambdanets.training import Run, evaluate_run, predict_images
from lambdanets.training.data import load_data


def test_probabilities_are_those_of_the_evaluation(trained):
    test = load_data(trained.run.data_spec).test
    test.transform = trained.run.transform.build()
    model = trained.run.load_model()
    with torch.no_grad():
        expected = model(torch.stack([test[index][0] for index in range(6)])).softmax(1)
    predictions = predict_images(trained.run.path, test.paths)
    assert [prediction.image for prediction in predictions] == test.paths
    for prediction, row in zip(predictions, expected, strict=True):
        shown = dict(prediction.classes)
        values = [shown[name] for name in trained.run.class_names]
        torch.testing.assert_close(torch.tensor(values), row, rtol=1e-4, atol=1e-5)


def test_classes_come_most_probable_first(trained, colours):
    (prediction,) = predict_images(trained.run.path, [colours / "red" / "000.png"])
    values = [probability for _, probability in prediction.classes]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)


def test_top_is_at_most_all_classes(trained, colours):
    image = colours / "red" / "000.png"
    for top, shown in ((1, 1), (2, 2), (99, 3)):
        assert len(predict_images(trained.run.path, [image], top=top)[0].classes) == shown


@pytest.mark.parametrize(
    ("name", "value"), [("top", 0), ("top", 1.5), ("batch_size", 0), ("batch_size", -1), ("batch_size", 2.5)]
)
def test_choices_out_of_range(trained, colours, name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; use an integer from 1"):
        predict_images(trained.run.path, [colours / "red" / "000.png"], **{name: value})


def test_one_file_is_no_list(trained):
    with pytest.raises(ValueError, match=r"^images is 'a\.png'; use a list of files"):
        predict_images(trained.run.path, "a.png")


def test_many_images_in_small_batches(trained, colours):
    images = sorted(colours.glob("*/*.png"))
    one, many = (predict_images(trained.run.path, images, batch_size=size) for size in (7, 100))
    for a, b in zip(one, many, strict=True):
        assert [name for name, _ in a.classes] == [name for name, _ in b.classes]


def test_any_image_file_will_do(trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.jpg")
    Image.new("RGBA", (1, 1)).save(tmp_path / "one.png")
    Image.new("P", (300, 200)).save(tmp_path / "palette.gif")
    images = sorted(tmp_path.iterdir())
    assert len(predict_images(trained.run.path, images)) == 3


def test_unreadable_image_is_named(trained, colours, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        predict_images(trained.run.path, [colours / "red" / "000.png", tmp_path / "broken.png"])
    # Before the first image is read.
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        predict_images(trained.run.path, [tmp_path / "broken.png", tmp_path / "none.png"], batch_size=1)


def test_probabilities_that_are_not_finite(trained, colours, tmp_path):
    """Weights that are finite can still give NaN."""
    run = Run.open(shutil.copytree(trained.run.path, tmp_path / "run"))
    weights = load_file(run.path / "best.safetensors")
    weights["fc.weight"].fill_(3e38)
    save_file(weights, run.path / "best.safetensors")
    with pytest.raises(ValueError, match=r"gives no finite probabilities for the image .*000\.png"):
        predict_images(run.path, [colours / "red" / "000.png"])
    with pytest.raises(ValueError, match=r"the loss of .* is (nan|inf): some outputs are no finite numbers"):
        evaluate_run(run.path)
