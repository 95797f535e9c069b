"""The photos of the demo, which scikit-image ships: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import skimage.data
from torch import Tensor

from fastxai.data.images import load_images

__all__ = ["demo_photos"]

PHOTOS = {"cat": "chelsea.png", "motorcycle": "motorcycle_left.png"}


def demo_photos(size: int = 32) -> tuple[Tensor, list[str]]:
    """A cat and a motorcycle: the largest central square of each photo, resized with anti-aliasing.

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
    return load_images([folder / file for file in PHOTOS.values()], size), list(PHOTOS)
