"""The photos of the demo, which scikit-image ships: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import skimage.data
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastxai.data.images import load_image

__all__ = ["demo_photos"]

PHOTOS = {"cat": "chelsea.png", "motorcycle": "motorcycle_left.png"}


def demo_photos(size: int = 32) -> tuple[Tensor, list[str]]:
    """A cat and a motorcycle: each whole photo, resized to a square with anti-aliasing.

    CIFAR-10 shows whole objects. The central square cuts off the cat's ears and half of the front wheel, and the demo
    network then takes the cat for a dog; narrowed by a third, both photos keep their subject.

    Args:
        size: side of the squares.

    Returns:
        float32 [2, 3, size, size] in [0, 1], and the two names.

    Raises:
        FileNotFoundError: this installation of scikit-image came without its photos.

    >>> from fastxai.data import demo_photos
    >>> images, names = demo_photos()
    >>> images.shape, names
    (torch.Size([2, 3, 32, 32]), ['cat', 'motorcycle'])
    """
    folder = Path(skimage.data.__file__).parent
    photos = (load_image(folder / file)[None] for file in PHOTOS.values())
    squares = [interpolate(photo, (size, size), mode="bilinear", antialias=True) for photo in photos]
    return torch.cat(squares), list(PHOTOS)
