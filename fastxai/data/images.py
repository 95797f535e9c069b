"""Image files to tensors and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from fastxai._check import require, tensor
from fastxai._files import written_aside

__all__ = ["fit", "fit_bytes", "load_image", "load_images", "save_png"]


def fit(images: Tensor, size: int, shorter: int | None = None) -> Tensor:
    """Resize the shorter side with anti-aliasing, then crop the central square.

    Args:
        images: floating point [N, C, H, W].
        size: side of the square.
        shorter: what the shorter side becomes before the crop; None means ``size``, so the largest central square is
            kept.

    Returns:
        [N, C, size, size]. Bilinear, so values stay within the images' range.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: not four axes with pixels, or ``shorter`` is below ``size``, or that below 1.

    >>> from fastxai.data import fit
    >>> fit(torch.zeros(1, 3, 60, 90), 32).shape
    torch.Size([1, 3, 32, 32])
    """
    tensor(images, "images")
    require(images.dim() == 4 and min(images.shape[1:]) > 0, "images", "have shape [N, C, H, W]", list(images.shape))
    require(size >= 1, "size", "be at least 1", size)
    shorter = size if shorter is None else shorter
    require(shorter >= size, "shorter", f"be at least size, {size}", shorter)
    scale = shorter / min(images.shape[-2:])
    height, width = (max(shorter, round(side * scale)) for side in images.shape[-2:])
    if (height, width) != images.shape[-2:]:
        images = interpolate(images, (height, width), mode="bilinear", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


def fit_bytes(image: Tensor, size: int) -> Tensor:
    """Return ``fit`` of one image [C, H, W] in [0, 1] as uint8 [C, size, size]."""
    return fit(image[None], size)[0].mul(255).round().to(torch.uint8)


def load_images(files: Iterable[str | Path], size: int, shorter: int | None = None) -> Tensor:
    """Read image files as one batch of squares in [0, 1].

    Args:
        files: paths, see ``load_image``.
        size: side of the squares.
        shorter: see ``fit``; 256 beside size 224 is the usual ImageNet crop.

    Returns:
        float32 [N, 3, size, size].

    Raises:
        FileNotFoundError: a path is missing.
        ValueError: a file is no image, or a size is not valid.
    """
    # Files differ in size, so each is read and resized by itself.
    squares = [fit(load_image(file)[None], size, shorter) for file in files]
    return torch.cat(squares) if squares else torch.zeros(0, 3, size, size)


def load_image(file: str | Path) -> Tensor:
    """Read one image file, turned upright as its camera says.

    Args:
        file: a path, in any format that Pillow reads; grey images become RGB, transparency is dropped.

    Returns:
        float32 [3, H, W] in [0, 1].

    Raises:
        FileNotFoundError: the path is missing.
        ValueError: the file is no image.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"file must name an existing image, got {file}")
    try:
        with Image.open(file) as image:
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise ValueError(f"file must name an image that Pillow can read, got {file}: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def save_png(image: Tensor, file: str | Path) -> Path:
    """Write an image as PNG; a reader sees the old file or the whole new one, never a part.

    Args:
        image: floating point [3, H, W], or [H, W] for grey; values beyond [0, 1] are clipped.
        file: where to; its folder is made if missing.

    Returns:
        The path written.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: another shape.
    """
    tensor(image, "image")
    grey = image.dim() == 2
    require(grey or (image.dim() == 3 and image.shape[0] == 3), "image", "have shape [3, H, W] or [H, W]", image.shape)
    pixels = (image.detach().float().nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    file = Path(file)
    with written_aside(file) as aside:
        Image.fromarray(pixels.numpy() if grey else pixels.permute(1, 2, 0).numpy()).save(aside, format="PNG")
    return file
