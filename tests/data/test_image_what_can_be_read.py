from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from widefield._core.errors import InputError
from widefield.data import UndecodableImageError, label_names, read_image
from widefield.data.image import decode_image

if TYPE_CHECKING:
    from pathlib import Path


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixel(content: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode_image(content, "here")
    assert image.mode == "RGB"
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def test_transparency_is_composited_on_white():
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG")) == (255, 0, 0)
    half = pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"))
    assert half[0] == 255
    assert half[1] == half[2] == pytest.approx(127, abs=1)
    assert pixel(saved(Image.new("LA", (4, 4), (0, 0)), "PNG")) == (255, 255, 255)


def test_a_palette_is_resolved_with_its_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putpixel((1, 0), 1)
    plain, transparent = saved(image, "PNG"), saved(image, "PNG", transparency=1)
    assert pixel(plain, 1) == (0, 255, 0)
    assert pixel(transparent, 1) == (255, 255, 255)
    assert pixel(transparent, 0) == (0, 0, 255)


def test_a_transparent_colour_key_without_palette_is_white():
    assert pixel(saved(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    image = decode_image(saved(Image.fromarray(values), kind), "here")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_becomes_rgb():
    red, green, blue = pixel(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert red > 200
    assert green < 60
    assert blue < 60


def test_an_image_is_turned_upright_by_its_exif_orientation():
    image = Image.new("RGB", (20, 10), "black")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(saved(image, "JPEG", exif=exif), "here").size == (10, 20)


def test_a_broken_exif_block_does_not_cost_the_image():
    content = saved(Image.new("RGB", (20, 10), "white"), "JPEG", exif=b"Exif\x00\x00broken")
    assert decode_image(content, "here").size == (20, 10)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"plain text", "no known image format"),
        (lambda data: data[: len(data) // 2], "truncated"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, damage, reason: str):
    path = tmp_path / "odd.jpg"
    path.write_bytes(damage(saved(Image.effect_noise((64, 64), 90), "JPEG")))
    with pytest.raises(UndecodableImageError) as caught:
        read_image(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"Expected an image that can be decoded, but got {str(path)!r} (")
    assert reason in sentence
    assert sentence.endswith("replace or delete it, or leave such images out with --data.on-error skip.")


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(UndecodableImageError, match=r"gone\.png' \(No such file"):
        read_image(tmp_path / "gone.png")


def test_an_image_too_large_to_be_honest_is_undecodable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UndecodableImageError, match="decompression bomb"):
        decode_image(saved(Image.new("L", (100, 100)), "PNG"), "bomb.png")


def test_floating_point_values_are_refused():
    content = saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(UndecodableImageError, match="floating-point values without a stated range"):
        decode_image(content, "height.tif")


def test_the_error_survives_the_way_between_processes():
    error = UndecodableImageError.of("a/b.png", "truncated")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UndecodableImageError
    assert str(copy) == str(error)


def test_label_names_are_read_from_a_list_or_from_classes(tmp_path: Path):
    path = tmp_path / "classes.json"
    path.write_text('["b", "a"]')
    assert label_names(path) == ("b", "a")
    path.write_text('{"classes": ["b", "a"], "note": "..."}')
    assert label_names(path) == ("b", "a")


@pytest.mark.parametrize("content", ['{"n01": 3}', "[1, 2]", '"cat"'])
def test_a_file_without_label_names_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"Expected a JSON list of class names, but got .* which holds something else"):
        label_names(path)


def test_a_file_that_is_no_json_and_a_name_given_twice_are_refused(tmp_path: Path):
    path = tmp_path / "classes.json"
    path.write_text("cat, dog")
    with pytest.raises(InputError, match="which cannot be read"):
        label_names(path)
    path.write_text('["cat", "dog", "cat"]')
    with pytest.raises(InputError, match="Expected each class name once, but got 'cat' twice"):
        label_names(path)
