"""What images of every kind mean: the values that a model gets, pixel by pixel."""

import io
import struct
import tarfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFile

from lambdanets.training.data import FileImages, load_data, transforms
from lambdanets.training.data.exam import load_exam
from lambdanets.training.data.inspection import inspect_images
from lambdanets.training.data.readers import ReaderImages
from lambdanets.training.data.shards import ShardReader, Shards
from lambdanets.training.data.transforms import UnreadableImageError, convert_colours, read_image


def values(path, mode="L"):
    return np.asarray(read_image(path, mode)).tolist()


def stroke(mode):
    """A black pixel, one of half opacity and one that is transparent, whose colour is black too."""
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("stored", ["RGBA", "LA"])
def test_transparency_lies_over_white(tmp_path, stored):
    stroke(stored).save(tmp_path / "a.png")
    assert values(tmp_path / "a.png") == [[0, 127, 255]]
    assert values(tmp_path / "a.png", "RGB") == [[[0] * 3, [127] * 3, [255] * 3]]


def test_transparent_colour_of_a_palette_and_of_plain_images(tmp_path):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    palette.save(tmp_path / "b.png", transparency=b"\x00\xff")
    for name in ("p.png", "p.gif", "b.png"):
        assert values(tmp_path / name, "RGB") == [[[255] * 3, [10, 20, 30]]]
    grey = Image.new("L", (2, 1), 0)
    grey.putpixel((1, 0), 9)
    grey.save(tmp_path / "l.png", transparency=0)
    assert values(tmp_path / "l.png") == [[255, 9]]
    deep = Image.fromarray(np.array([[0, 65535, 257 * 7]], dtype=np.uint16))
    deep.save(tmp_path / "i.png", transparency=0)
    assert values(tmp_path / "i.png") == [[255, 255, 7]]
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    colour.save(tmp_path / "c.png", transparency=(1, 2, 3))
    assert values(tmp_path / "c.png", "RGB") == [[[255] * 3]]


def test_opaque_images_keep_their_values(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert values(tmp_path / "a.png", "RGB") == pixels[..., :3].tolist()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_divided_by_257(tmp_path, order):
    image = Image.frombytes(
        "I;16" if order == "<u2" else "I;16B", (4, 1), np.array([0, 257, 300, 65535], order).tobytes()
    )
    image.save(tmp_path / "a.tif")
    assert Image.open(tmp_path / "a.tif").mode == image.mode
    assert values(tmp_path / "a.tif") == [[0, 1, 1, 255]]
    assert values(tmp_path / "a.tif", "RGB") == [[[0] * 3, [1] * 3, [1] * 3, [255] * 3]]


def tiff(pixels, *, bits=None, photometric=1, sample=1, orientation=1):
    """One line of a TIFF file in greyscale, uncompressed."""
    bits = bits or 8 * pixels.itemsize
    data = pixels.tobytes()
    tags = {256: 8 * len(data) // bits, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 274: orientation, 277: 1}
    tags |= {278: 1, 279: len(data), 339: sample}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize("orientation", [1, 2])
@pytest.mark.parametrize(
    ("pixels", "sample"),
    [
        (np.array([0, 51, 255], "<u1"), 1),
        (np.array([0, 51 * 257, 65535], "<u2"), 1),
        (np.array([0, 0.2, 1], "<f4"), 3),
    ],
)
def test_tiff_whose_zero_is_white(tmp_path, pixels, sample, orientation):
    expected = {1: [0, 51, 255], 0: [255, 204, 0]}
    for photometric, row in expected.items():
        (tmp_path / "a.tif").write_bytes(tiff(pixels, photometric=photometric, sample=sample, orientation=orientation))
        assert values(tmp_path / "a.tif") == [row if orientation == 1 else row[::-1]]


def test_images_of_readers_whose_zero_is_white():
    with Image.open(io.BytesIO(tiff(np.array([0, 65535], "<u2"), photometric=0))) as image:
        assert np.asarray(convert_colours(image, "L")).tolist() == [[255, 0]]


def test_twelve_bits_of_tiff(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.frombuffer(bytes.fromhex("000fff"), np.uint8), bits=12))
    assert values(tmp_path / "a.tif") == [[0, 255]]


def test_signed_bytes_of_tiff_are_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.array([-50, 50], "i1"), sample=2))
    with pytest.raises(UnreadableImageError, match=r"a\.tif cannot be read: it has signed integers of 8 bits"):
        read_image(tmp_path / "a.tif", "RGB")
    (tmp_path / "a.tif").write_bytes(tiff(np.array([50, 257], "<i2"), sample=2))
    assert values(tmp_path / "a.tif") == [[0, 1]]


def test_integers_of_fits_are_refused(tmp_path):
    """They are signed, with the upper byte first, and Pillow takes them for unsigned with the lower one first."""
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    (tmp_path / "a.fits").write_bytes(header + np.array([1, 2], ">i2").tobytes().ljust(2880, b"\0"))
    with pytest.raises(UnreadableImageError, match=r"a\.fits cannot be read: mode I;16 of FITS"):
        read_image(tmp_path / "a.fits", "L")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([0, 1, 128, 255], [0, 1, 128, 255]), ([0, 257, 32768, 65535], [0, 1, 128, 255]), ([0, 0, 0, 256], [0, 0, 0, 1])],
)
def test_32_bit_integers_by_their_range(tmp_path, stored, expected):
    Image.fromarray(np.array([stored], np.int32)).save(tmp_path / "a.tif")
    assert values(tmp_path / "a.tif") == [expected]


def test_16_bit_greymaps_are_16_bits_even_if_dark(tmp_path):
    """Pillow opens them as 32-bit integers."""
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + np.array([0, 200, 255], ">u2").tobytes())
    assert values(tmp_path / "a.pgm") == [[0, 1, 1]]


def test_floats_from_0_to_1(tmp_path):
    Image.fromarray(np.array([[0, 0.2, 0.5, 1]], np.float32)).save(tmp_path / "a.tiff")
    assert values(tmp_path / "a.tiff") == [[0, 51, 128, 255]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, 1.5]], np.float32), r"mode F has values from 0 to 1\.5"),
        (np.array([[-0.1, 1]], np.float32), r"mode F has values from -0\.1 to 1"),
        (np.array([[0, 255]], np.float32), "mode F has values from 0 to 255; scale floats"),
        (np.array([[0, np.nan]], np.float32), "mode F has values from nan to nan"),
        (np.array([[0, np.inf]], np.float32), "mode F has values from 0 to inf"),
        (np.array([[0, 65536]], np.int32), "mode I has values from 0 to 65536; scale integers"),
        (np.array([[-1, 3]], np.int32), "mode I has values from -1 to 3"),
    ],
)
def test_numbers_without_a_rule_are_refused_by_name(tmp_path, array, message):
    Image.fromarray(array).save(tmp_path / "strange.tif")
    for mode in ("L", "RGB"):
        with pytest.raises(ValueError, match=rf"strange\.tif cannot be read: {message}"):
            read_image(tmp_path / "strange.tif", mode)


@pytest.mark.parametrize("stored", ["YCbCr", "CMYK", "HSV", "LAB", "1", "PA", "RGBX"])
def test_other_colours(stored):
    red = Image.new("RGB", (1, 1), (255, 0, 0) if stored not in ("1", "LAB") else (255, 255, 255))
    if stored == "LAB":
        image = Image.new("LAB", (1, 1), (255, 128, 128))
    else:
        image = (red.convert("P") if stored == "PA" else red).convert(stored)
    expected = 255 if stored in ("1", "LAB") else 76
    assert abs(np.asarray(convert_colours(image, "L")).item() - expected) <= 2
    assert convert_colours(image, "RGB").mode == "RGB"


def test_cmyk_photograph(tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert np.abs(np.asarray(read_image(tmp_path / "a.jpg", "RGB")) - np.array([200, 100, 50])).max() <= 3


def test_first_image_of_an_animation(tmp_path):
    frames = [Image.new("L", (2, 2), value) for value in (40, 200)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        extra = {"lossless": True} if name.endswith("webp") else {}
        frames[0].convert("RGB" if extra else "L").save(
            tmp_path / name, save_all=True, append_images=frames[1:], **extra
        )
        assert values(tmp_path / name)[0][0] == 40, name


@pytest.mark.parametrize("depth", ["L", "I;16", "RGBA", "F"])
def test_orientation_of_every_kind(tmp_path, depth):
    array = {
        "L": np.array([[10], [20]], np.uint8),
        "I;16": np.array([[2570], [5140]], np.uint16),
        "RGBA": np.array([[[10] * 3 + [255]], [[20] * 3 + [255]]], np.uint8),
        "F": np.array([[10], [20]], np.float32) / 255,
    }[depth]
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = 3  # turn by 180 degrees
    path = tmp_path / ("a.tif" if depth == "F" else "a.png")
    image.save(path, exif=exif)
    assert values(path) == [[20], [10]]


def announcing(path, width, height):
    """A PNG of a few bytes that announces that many pixels."""
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("side", [9460, 20000, 2**20])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, side, monkeypatch):
    announcing(tmp_path / "bomb.png", side, side)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for look in (
        lambda: read_image(tmp_path / "bomb.png", "RGB"),
        lambda: inspect_images([FileImages([tmp_path / "bomb.png"], [0])]),
    ):
        with pytest.raises(ValueError, match=r"bomb\.png cannot be read: .*(more than the 89,478,485|exceeds limit)"):
            look()


def test_the_largest_image_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 6)
    Image.new("L", (2, 3)).save(tmp_path / "a.png")
    Image.new("L", (1, 7)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.png", "L").size == (2, 3)
    with pytest.raises(transforms.UnreadableImageError, match="it has 1 x 7 pixels, more than the 6 that are read"):
        read_image(tmp_path / "b.png", "L")


def test_training_evaluation_and_prediction_read_every_kind_alike(tmp_path):
    """Through the folder's split, an exam, a tar file of samples, and the file itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    kinds = {
        "turned.jpg": (colour, {"exif": exif}),
        "deep.png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        "cmyk.tif": (colour.convert("CMYK"), {}),
        "palette.gif": (colour.quantize(16), {"transparency": 3}),
        "transparent.PNG": (Image.fromarray(pixels), {}),
    }
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for file, (image, options) in kinds.items():
            image.save(tmp_path / "data" / name / file, **options)
    data, exam = load_data(str(tmp_path / "data")), load_exam(str(tmp_path / "data"), ("a", "b")).images
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for file in kinds:
            archive.add(tmp_path / "data" / "a" / file, file)
            label = tarfile.TarInfo(f"{file.partition('.')[0]}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"0"))
    reader = ShardReader(Shards((tmp_path / "x.tar",)), tmp_path)
    shards = ReaderImages(SimpleNamespace(reader=reader), range(len(kinds)))
    found = {}
    for images in (data.train, data.validation, data.test, exam):
        for index, path in enumerate(images.paths):
            found.setdefault(path.name, []).append(np.asarray(images[index][0]))
    for index, file in enumerate(kinds):
        found[file].append(np.asarray(shards[index][0]))
        expected = np.asarray(read_image(tmp_path / "data" / "a" / file, "RGB"))
        assert len(found[file]) == 5
        assert all(np.array_equal(one, expected) for one in found[file]), file
        assert expected.shape == ((6, 4, 3) if file == "turned.jpg" else (4, 6, 3))


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is no regular file but a pipe"):
        read_image(tmp_path / "a.png", "L")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png is a link that leads nowhere"):
        read_image(tmp_path / "b.png", "L")


class HuggingFaceLike:
    """As timm's reader: open files by index; its data set would skip the second one."""

    def __init__(self, files):
        self.files = files

    def __getitem__(self, index):
        return io.BytesIO(self.files[index]), index

    def filename(self, index):
        return f"image-{index}.png"


def test_readers_go_through_the_same_conversion(tmp_path):
    buffer = io.BytesIO()
    stroke("RGBA").save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())

    class Base:
        reader = HuggingFaceLike([buffer.getvalue(), buffer.getvalue()[:45]])

        def __len__(self):
            return 2

    images = ReaderImages(Base(), [0, 1])
    image, label = images[0]
    assert (np.asarray(image).tolist(), label) == (values(tmp_path / "a.png", "RGB"), 0)
    assert np.asarray(FileImages([tmp_path / "a.png"], [0])[0][0]).tolist() == np.asarray(image).tolist()
    with pytest.raises(ValueError, match=r"1 of HuggingFaceLike \(image-1\.png\) cannot be read"):
        images[1]
