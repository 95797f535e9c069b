"""What torchvision reads: the same as our own readers, and refusals that help."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from data.test_idx import sample, write
from PIL import Image

from fastxai.data import labelled


def write_signs(root, shapes):
    """The layout of torchvision's GTSRB: PPM files, a folder a class to train, a table to test."""
    base = root / "gtsrb"
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    images, rows = [], ["Filename;Width;ClassId"]
    for number, shape in enumerate(shapes):
        images.append(np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8))
        train = base / "GTSRB" / "Training" / f"{number:05d}"
        train.mkdir(parents=True)
        Image.fromarray(images[-1]).save(train / "x.ppm")
        Image.fromarray(images[-1]).save(test / f"{number}.ppm")
        rows.append(f"{number}.ppm;6;{len(shapes) - 1 - number}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return images


@pytest.fixture
def there():
    pytest.importorskip("torchvision")


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_as_our_own_reader(there, tmp_path, name):
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    write(raw, "train", *sample(9, 28, 28, 10))
    write(raw, "test", *sample(4, 28, 28, 10))
    for part in ("train", "test"):
        theirs, ours = labelled(f"torchvision:{name}:{tmp_path}", part), labelled(f"idx:{raw}", part)
        assert theirs.images.equal(ours.images) and theirs.labels.equal(ours.labels)
        assert len(theirs.classes) == 10
    assert theirs.classes[9] == {"MNIST": "9 - nine", "FashionMNIST": "Ankle boot"}[name]
    assert labelled(f"torchvision:{name}:{tmp_path}", "test", size=14).images.shape == (4, 1, 14, 14)


def test_images_of_one_size(there, tmp_path):
    images = np.stack(write_signs(tmp_path, [(7, 6)] * 3))
    train, test = (labelled(f"torchvision:GTSRB:{tmp_path}", part) for part in ("train", "test"))
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), images)
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), images)
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [2, 1, 0]
    assert train.classes == test.classes == ("0", "1", "2")


def test_images_of_several_sizes(there, tmp_path):
    images = write_signs(tmp_path, [(6, 6), (12, 9), (8, 20)])
    with pytest.raises(ValueError, match=r"size must be given for .* None for GTSRB, with sides from \(6, 6\)"):
        labelled(f"torchvision:GTSRB:{tmp_path}", "train")
    read = labelled(f"torchvision:GTSRB:{tmp_path}", "train", size=6)
    assert read.images.shape == (3, 3, 6, 6) and read.images.dtype == torch.uint8
    assert np.array_equal(read.images[0].permute(1, 2, 0).numpy(), images[0])


def test_refusals(there, tmp_path):
    for place in (f"torchvision:{tmp_path}", "torchvision:MNIST", "torchvision:MNIST:"):
        with pytest.raises(ValueError, match="place must be torchvision:NAME:FOLDER, got"):
            labelled(place, "train")
    for name in ("mnist", "nothing", "VisionDataset2", "utils"):
        with pytest.raises(ValueError, match=r"place must name a data set of torchvision\.datasets, got"):
            labelled(f"torchvision:{name}:{tmp_path}", "train")
    with pytest.raises(ValueError, match="with the parts train and test, got 'FakeData'"):
        labelled(f"torchvision:FakeData:{tmp_path}", "train")


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100", "SVHN", "GTSRB", "STL10"])
def test_nothing_is_downloaded(there, tmp_path, name, monkeypatch):
    def no_net(*_, **__):
        raise AssertionError("the net was asked for")

    monkeypatch.setattr("urllib.request.urlopen", no_net)
    with pytest.raises(FileNotFoundError, match=f"must hold torchvision's {name}, got Dataset not found"):
        labelled(f"torchvision:{name}:{tmp_path}", "test")
    assert list(tmp_path.rglob("*.*")) == []


def test_several_labels_an_image(there, tmp_path, monkeypatch):
    from torchvision import datasets

    class Pairs(datasets.VisionDataset):
        def __init__(self, root, train=True):
            super().__init__(root)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("RGB", (4, 4)), (0, 1)

    monkeypatch.setattr(datasets, "Pairs", Pairs, raising=False)
    with pytest.raises(ValueError, match=r"torchvision's Pairs must give one integer a label, got \(0, 1\)"):
        labelled(f"torchvision:Pairs:{tmp_path}", "train")


def test_grey_among_colours(there, tmp_path, monkeypatch):
    from torchvision import datasets

    class Mixed(datasets.VisionDataset):
        classes = ("none", "one", "two")

        def __init__(self, root, split="train"):
            super().__init__(root)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return (Image.new("L", (4, 3), 7), 2) if index else (Image.new("RGB", (4, 3), (1, 2, 3)), torch.tensor(1))

    monkeypatch.setattr(datasets, "Mixed", Mixed, raising=False)
    read = labelled(f"torchvision:Mixed:{tmp_path}", "test")
    assert read.images.shape == (2, 3, 3, 4) and read.images[:, :, 0, 0].tolist() == [[1, 2, 3], [7, 7, 7]]
    assert read.labels.tolist() == [1, 2] and read.classes == Mixed.classes


def test_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="torchvision:SVHN needs torchvision, which is not installed"):
        labelled(f"torchvision:SVHN:{tmp_path}", "train")
