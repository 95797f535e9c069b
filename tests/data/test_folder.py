"""Folders of images, one a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastxai.data import fit, labelled, load_image


def write(folder, name, shape=(6, 6, 3), seed=0):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


def test_classes_and_files_by_name(tmp_path):
    expected = [
        write(tmp_path, "train/b dog/2.png", seed=2),
        write(tmp_path, "train/a cat/z.png", seed=0),
        write(tmp_path, "train/b dog/10.PNG", seed=1),
    ]
    write(tmp_path, "test/b dog/1.webp", (9, 6, 3))
    (tmp_path / "train" / "c empty").mkdir()
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("no image")
    (tmp_path / "train" / "a cat" / "notes.txt").write_text("no image")
    train, test = (labelled(f"folder:{tmp_path}", part, size=6) for part in ("train", "test"))
    assert train.classes == test.classes == ("a cat", "b dog", "c empty")
    assert train.labels.tolist() == [0, 1, 1] and test.labels.tolist() == [1]
    assert train.images.dtype == torch.uint8 and train.images.is_contiguous(memory_format=torch.channels_last)
    # What has the right size already comes through exactly; 10.PNG comes before 2.png.
    for image, pixels in zip(train.images, (expected[1], expected[2], expected[0]), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize(("shape", "size"), [((40, 30, 3), 16), ((7, 20, 3), 16), ((23, 23), 9), ((5, 5, 4), 1)])
def test_sizes_become_one(tmp_path, shape, size):
    write(tmp_path, "test/only/x.png", shape)
    read = labelled(f"folder:{tmp_path}", "test", size=size)
    expected = fit(load_image(tmp_path / "test" / "only" / "x.png")[None], size)
    assert read.images.shape == (1, 3, size, size) and read.classes == ("only",)
    torch.testing.assert_close(read.images.double() / 255, expected.double(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_size_must_be_given(tmp_path):
    write(tmp_path, "test/only/x.png")
    with pytest.raises(ValueError, match="size must be given for folder:, whose files may differ in size, got None"):
        labelled(f"folder:{tmp_path}", "test")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        labelled(f"folder:{tmp_path}", "test", size=0)


def test_wrong_folders(tmp_path):
    for part in ("train", "test"):
        with pytest.raises(FileNotFoundError, match=f"must hold a folder {part}"):
            labelled(f"folder:{tmp_path}", part, size=8)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train must hold folders of files that end in \.png .*, got no such file"):
        labelled(f"folder:{tmp_path}", "train", size=8)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(ValueError, match="train must hold folders of files"):
        labelled(f"folder:{tmp_path}", "train", size=8)
    write(tmp_path, "test/cats/x.png")
    with pytest.raises(ValueError, match=r"test must hold classes of .*train only, got \['cats'\]"):
        labelled(f"folder:{tmp_path}", "test", size=8)
    (tmp_path / "train" / "cat" / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        labelled(f"folder:{tmp_path}", "train", size=8)
