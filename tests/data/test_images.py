"""Image files in and out."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastxai.data import demo_photos, fit, load_images, save_png


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(0, 9), st.integers(0, 100))
def test_fit_gives_squares_within_the_range(height, width, size, more, seed):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    out = fit(images, size, size + more)
    assert out.shape == (2, 3, size, size)
    assert out.min() >= images.min() - 1e-6 and out.max() <= images.max() + 1e-6


@pytest.mark.parametrize(("height", "width"), [(96, 141), (141, 96), (80, 80)])
def test_fit_resizes_as_pillow_does(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack((y % 7 / 7, x % 5 / 5, (x + y) % 2 / 1)).float()
    scale = 40 / min(height, width)
    sides = round(width * scale), round(height * scale)
    expected = [np.array(Image.fromarray(c.numpy()).resize(sides, Image.Resampling.BILINEAR)) for c in image]
    top, left = (sides[1] - 32) // 2, (sides[0] - 32) // 2
    torch.testing.assert_close(
        fit(image[None], 32, 40)[0],
        torch.from_numpy(np.stack(expected))[:, top : top + 32, left : left + 32],
        rtol=0,
        atol=1e-5,
    )


def test_fit_leaves_the_right_size_alone_and_takes_the_middle():
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(fit(images, 8), images[..., 2:10])
    assert fit(images[:0], 5).shape == (0, 3, 5, 5)
    assert fit(images.double(), 5).dtype == torch.float64


def test_fit_wrong_arguments():
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(TypeError, match="images must have a floating point dtype"):
        fit(images.byte(), 8)
    with pytest.raises(ValueError, match=r"images must have shape \[N, C, H, W\]"):
        fit(images[0], 8)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        fit(images, 0)
    with pytest.raises(ValueError, match="shorter must be at least size, 8, got 7"):
        fit(images, 8, 7)


def test_png_goes_there_and_back(tmp_path):
    image = torch.randint(0, 256, (3, 17, 17)).float() / 255
    file = save_png(image, tmp_path / "new" / "folder" / "image.png")
    assert torch.equal(load_images([file], 17)[0], image)
    grey = save_png(image[0].double().T, str(tmp_path / "grey.png"))
    assert torch.equal(load_images([file, grey], 17)[1], image[0].T.expand(3, -1, -1))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["grey.png"]


def test_png_clips_and_detaches(tmp_path):
    image = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0, torch.nan], requires_grad=True).view(2, 3)
    read = np.array(Image.open(save_png(image, tmp_path / "x.png")))
    assert read.tolist() == [[0, 0, 128], [255, 255, 0]]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = save_png(torch.zeros(3, 4, 4), tmp_path / "x.png")
    before = file.read_bytes()

    def broken(self, target, format):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_png(torch.ones(3, 4, 4), file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_save_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match="image must have a floating point dtype"):
        save_png(torch.zeros(3, 4, 4, dtype=torch.uint8), tmp_path / "x.png")
    for shape in ((4, 4, 3), (1, 3, 4, 4), (4,)):
        with pytest.raises(ValueError, match="image must have shape"):
            save_png(torch.zeros(shape), tmp_path / "x.png")


def test_load_turns_upright_and_converts(tmp_path):
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[:3] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "clear.png")
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    turned, grey, clear, palette = load_images(
        [tmp_path / f"{n}.png" for n in ("turned", "grey", "clear", "palette")], 4
    )
    assert turned.dtype == torch.float32
    assert turned[0, 0].tolist() == [0, 0, 1, 1] and not turned[1:].any()
    assert torch.equal(grey[0], grey[2]) and torch.equal(grey[0], clear[0]) and torch.equal(palette, clear)


def test_load_wrong_files(tmp_path):
    assert load_images([], 9).shape == (0, 3, 9, 9)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_images([tmp_path / "none.png"], 8)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"that Pillow can read, got .*text\.png"):
        load_images([tmp_path / "text.png"], 8)


def test_photos_are_those_of_scikit_image():
    images, names = demo_photos()
    assert images.shape == (2, 3, 32, 32) and names == ["cat", "motorcycle"]
    for image, photo in zip(images, (skimage.data.chelsea(), skimage.data.stereo_motorcycle()[0]), strict=True):
        channels = [
            np.array(Image.fromarray(photo[..., c] / np.float32(255)).resize((32, 32), Image.Resampling.BILINEAR))
            for c in range(3)
        ]
        torch.testing.assert_close(image, torch.from_numpy(np.stack(channels)), rtol=0, atol=1e-5)
    assert demo_photos(48)[0].shape == (2, 3, 48, 48)
