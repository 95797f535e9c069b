"""Target maps: what the map of an attacked image is to look like, [N, H, W] with sum 1, ready for ``perturb``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastxai import _check, _random
from fastxai.explainers import Explainer, reduce_map

__all__ = ["disc", "mask", "of", "random", "rectangle", "text", "uniform"]

Size = tuple[int, int, int]
Drawing = Tensor | str | os.PathLike[str]


def _size(size: Sequence[int]) -> Size:
    three = isinstance(size, Sequence) and len(size) == 3
    whole = three and all(isinstance(n, int) and not isinstance(n, bool) for n in size)
    _check.require(whole and size[0] >= 0 and min(size[1:]) > 0, "size", "be (N, H, W)", size)
    n, height, width = size
    return n, height, width


def _finite(values: Any, count: int) -> bool:
    """Return whether these are so many finite numbers."""
    numbers = _check.numbers(values)
    return numbers is not None and tuple(numbers.shape) == (count,) and bool(numbers.isfinite().all())


def of(images: Tensor, explainer: Explainer, target: int | Tensor | None = None) -> Tensor:
    """Return the maps of other images, channels summed as |.|: the targets of [M].

    Args:
        images: [N, C, H, W].
        explainer: the map under attack.
        target: the explained class as an int, a LongTensor [N], or None for what the model predicts on ``images``.

    Raises:
        TypeError: explainer is no explainer, images are no floating point tensor.
        ValueError: images have another shape or are not finite; images or target do not fit the model.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
    >>> h = fastxai.attacks.target_maps.of(torch.rand(2, 1, 8, 8), fastxai.Gradient(model))
    >>> h.shape, torch.allclose(h.sum((1, 2)), torch.ones(2))
    (torch.Size([2, 8, 8]), True)
    """
    _check.instance(explainer, "explainer", Explainer, "be a fastxai explainer")
    fits = _check.tensor(images, "images").dim() == 4
    _check.require(fits, "images", "have shape [N, C, H, W]", list(images.shape))
    _check.finite_samples(images, "images", "be finite")
    with torch.no_grad():
        return reduce_map(explainer.attribute(images, target))


def uniform(size: Sequence[int]) -> Tensor:
    """Return maps of size (N, H, W) that prefer no pixel: 1 / (H W) everywhere.

    Raises:
        ValueError: size is not (N, H, W).

    >>> fastxai.attacks.target_maps.uniform((2, 4, 4))[0, 0, 0]
    tensor(0.0625)
    """
    n, height, width = _size(size)
    return torch.full((n, height, width), 1 / (height * width))


def rectangle(size: Sequence[int], box: tuple[float, float, float, float], *, frame: float = 0.0) -> Tensor:
    """Return maps of size (N, H, W) that are constant in a rectangle and 0 elsewhere.

    Args:
        size: (N, H, W).
        box: (top, left, bottom, right) as parts of height and width, 0 .. 1.
        frame: width of a frame as a part of the shorter side, where only the rectangle's edge is wanted; 0 fills it.

    Raises:
        ValueError: size, box or frame is wrong, or no pixel's centre lies in the rectangle.

    >>> fastxai.attacks.target_maps.rectangle((1, 4, 4), (0, 0, 0.5, 1))[0, :, 0]
    tensor([0.1250, 0.1250, 0.0000, 0.0000])
    """
    _, height, width = _size(size)
    _check.require(_finite(box, 4), "box", "be (top, left, bottom, right), finite numbers", box)
    top, left, bottom, right = (side * length for side, length in zip(box, (height, width) * 2, strict=True))
    y, x = _centres(height, width)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    edge = _check.not_negative(frame, "frame") * min(height, width)
    if edge > 0:
        inner = (y >= top + edge) & (y < bottom - edge) & (x >= left + edge) & (x < right - edge)
        inside = inside & ~inner
    _check.require(bool(inside.any()), "box, frame", "hold the centre of a pixel", (box, frame))
    return mask(size, inside)


def disc(size: Sequence[int], centre: tuple[float, float] = (0.5, 0.5), radius: float = 0.25) -> Tensor:
    """Return maps of size (N, H, W) that are constant in a disc and 0 elsewhere.

    Args:
        size: (N, H, W).
        centre: (vertical, horizontal) as parts of height and width, 0 .. 1.
        radius: as a part of the shorter side.

    Raises:
        ValueError: size, centre or radius is wrong, or no pixel's centre lies in the disc.

    >>> fastxai.attacks.target_maps.disc((1, 4, 4))[0, 1]
    tensor([0.0000, 0.2500, 0.2500, 0.0000])
    """
    _, height, width = _size(size)
    _check.require(_finite(centre, 2), "centre", "be (vertical, horizontal), finite numbers", centre)
    y, x = _centres(height, width)
    distance = (y - centre[0] * height).square() + (x - centre[1] * width).square()
    reach = _check.positive(radius, "radius") * min(height, width)
    inside = distance < reach * reach
    _check.require(bool(inside.any()), "centre, radius", "hold the centre of a pixel", (centre, radius))
    return mask(size, inside)


def _centres(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates of the pixels' centres, [H, 1] and [1, W]."""
    return torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5


def mask(size: Sequence[int], drawn: Drawing) -> Tensor:
    """Return maps of size (N, H, W) from a drawing.

    Args:
        size: (N, H, W).
        drawn: a tensor, boolean or of non-negative numbers, [H, W] for all or [N, H, W], or an image file, whose
            brightness counts and which is resized.

    Raises:
        TypeError: it is neither a tensor nor a file's name.
        FileNotFoundError: there is no such file.
        ValueError: the drawing has another shape, values that are negative or not finite, or nothing above 0.

    >>> fastxai.attacks.target_maps.mask((2, 2, 2), torch.eye(2, dtype=torch.bool))[1]
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    n, height, width = _size(size)
    known = isinstance(drawn, (Tensor, str, os.PathLike))
    _check.require(known, "drawn", "be a tensor or name an image", type(drawn).__name__, TypeError)
    values = drawn if isinstance(drawn, Tensor) else _read(Path(drawn), height, width)
    fits = tuple(values.shape) in ((height, width), (n, height, width))
    _check.require(fits, "drawn", f"have shape {[height, width]} or {[n, height, width]}", list(values.shape))
    if not values.is_floating_point():
        values = values.float()
    if not (values.isfinite() & (values >= 0)).all():
        _check.require(False, "drawn", "be finite and not negative", f"{values.min().item()} .. {values.max().item()}")
    values = values.expand(n, height, width)
    _check.require(bool((values.flatten(1) > 0).any(1).all()), "drawn", "have something above 0", "only zeros")
    # Relative to the largest and in float64, as sums of large values are infinite.
    parts = values.double()
    return reduce_map(parts / parts.amax((1, 2), keepdim=True), None).to(values.dtype)


def _read(file: Path, height: int, width: int) -> Tensor:
    # Here and below: fastxai is imported without Pillow and matplotlib.
    from PIL import Image

    _check.require(file.is_file(), "drawn", "name an existing image", file, FileNotFoundError)
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("L").resize((width, height), Image.Resampling.BOX))
    except OSError as error:
        raise ValueError(f"drawn must name an image that Pillow can read, got {file}: {error}") from error
    return torch.from_numpy(pixels).float() / 255


def text(size: Sequence[int], words: str | Sequence[str]) -> Tensor:
    """Return maps of size (N, H, W) that show words, as large as they fit.

    Args:
        size: (N, H, W).
        words: for all, or one for each sample; a line break starts a new line.

    Raises:
        TypeError: words are no strings.
        ValueError: the number of words is not N, or one of them shows nothing.

    >>> fastxai.attacks.target_maps.text((2, 32, 32), "why?").shape
    torch.Size([2, 32, 32])
    """
    n, height, width = _size(size)
    if isinstance(words, str):
        return mask(size, _written(words, height, width))
    several = isinstance(words, Sequence) and all(isinstance(word, str) for word in words)
    _check.require(several, "words", "be a str or a sequence of them", repr(words), TypeError)
    _check.require(len(words) == n, "words", f"be one or {n}", len(words))
    drawn = [_written(word, height, width) for word in words]
    return mask(size, torch.stack(drawn) if drawn else torch.zeros(size))


def _written(words: str, height: int, width: int) -> Tensor:
    """Draw words several times larger than they must be, then shrink them, which smooths their edges."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), 96)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), words, font, spacing=8)
    empty = right <= left or bottom <= top
    _check.require(not empty, "words", "show something", repr(words))
    scale = min(0.94 * width / (right - left), 0.94 * height / (bottom - top))
    canvas = Image.new("L", (math.ceil(width / scale), math.ceil(height / scale)))
    corner = ((canvas.width - right - left) / 2, (canvas.height - bottom - top) / 2)
    ImageDraw.Draw(canvas).multiline_text(corner, words, 255, font, spacing=8, align="center")
    small = canvas.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).float() / 255


def random(size: Sequence[int], seed: int = 0, smooth: float = 0.0, *, index: Tensor | None = None) -> Tensor:
    """Return maps of size (N, H, W) of noise that depends on the seed, the sample's number and the size alone.

    Args:
        size: (N, H, W).
        seed: of the noise.
        smooth: 0 draws every pixel uniformly from (0, 1); above, the map is exp(z), z being standard normal noise
            behind a Gaussian filter of this standard deviation in pixels (periodic) and scaled to variance 1; where
            that is large, the image's longest waves alone.
        index: the samples' numbers, LongTensor [N]; 0 .. N-1 if None.

    Raises:
        TypeError: seed is no int, index holds no integers.
        ValueError: size, smooth or index is wrong.

    >>> a = fastxai.attacks.target_maps.random((3, 8, 8), seed=1)
    >>> torch.equal(a[2:], fastxai.attacks.target_maps.random((1, 8, 8), seed=1, index=torch.tensor([2])))
    True
    """
    n, height, width = _size(size)
    _check.not_negative(smooth, "smooth")
    number = isinstance(seed, int) and not isinstance(seed, bool)
    _check.require(number, "seed", "be an int", repr(seed), TypeError)
    index = torch.arange(n) if index is None else _check.tensor(index, "index", False)
    whole = not (index.is_floating_point() or index.dtype == torch.bool)
    _check.require(whole, "index", "hold integers", index.dtype, TypeError)
    _check.shape(index, "index", (n,))
    stream = (seed,), index, range(1), height * width
    # torch 2.11's Fourier transforms refuse an empty batch, and one pixel has no waves.
    if smooth == 0 or not n or height * width == 1:
        return reduce_map(_random.uniform(*stream)[0].view(n, height, width), None)
    z = _random.normal(*stream)[0].view(n, height, width).double()
    down, across = torch.fft.fftfreq(height).double()[:, None], torch.fft.rfftfreq(width).double()[None]
    squares = down.square() + across.square()
    # Relative to the longest wave and without the mean, so that the smoothest noise is more than rounding too.
    above = (squares - squares.flatten()[1:].min()).clamp(min=0).sqrt()
    response = torch.exp(-2 * (above * smooth * math.pi).square())
    response[0, 0] = 0
    z = torch.fft.irfft2(torch.fft.rfft2(z) * response, s=(height, width))
    z = z / z.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-300)
    return reduce_map(z.exp().float(), None)
