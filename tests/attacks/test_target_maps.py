"""Target maps: shapes, sums, and what they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attacks.nets import CHANNELS, cnn, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import fastxai
from fastxai.attacks import Manipulation, target_maps
from fastxai.explainers import Gradient, IntegratedGradients, reduce_map

sizes = st.tuples(st.integers(0, 3), st.integers(1, 17), st.integers(1, 17))


def is_target(h: Tensor, size: tuple[int, int, int]) -> bool:
    sums = torch.allclose(h.sum((1, 2)), torch.ones(size[0], dtype=h.dtype), atol=1e-5)
    return tuple(h.shape) == size and sums and bool((h >= 0).all() and h.isfinite().all()) and not h.requires_grad


@settings(max_examples=40, deadline=None)
@given(size=sizes, smooth=st.sampled_from([0.0, 0.5, 3.0]), seed=st.integers(-5, 2**70))
def test_noise_sums_to_one_and_does_not_depend_on_the_batch(size, smooth, seed):
    h = target_maps.random(size, seed, smooth)
    assert is_target(h, size) and is_target(target_maps.uniform(size), size)
    if size[0] > 1:
        part = target_maps.random((1, *size[1:]), seed, smooth, index=torch.tensor([1]))
        torch.testing.assert_close(part[0], h[1], rtol=1e-6, atol=0)
        assert min(size[1:]) < 3 or not torch.allclose(h[0], h[1])


def test_smoothness_is_the_filters():
    """The correlation of neighbours at distance d of noise behind a Gaussian filter is exp(-d^2 / (4 sigma^2))."""
    z = target_maps.random((100, 64, 64), 3, 2.0).double().log()
    z = (z - z.mean((1, 2), keepdim=True)) / z.std((1, 2), keepdim=True)
    for d in (1, 2, 4):
        got = (z * z.roll(d, 2)).mean().item()
        assert got == pytest.approx(np.exp(-(d**2) / 16), abs=0.03)
    white = target_maps.random((200, 32, 32), 3).double()
    white = white - white.mean()
    assert (white * white.roll(1, 2)).mean().abs() < 0.01 * white.square().mean()


@pytest.mark.parametrize("smooth", [32.0, 45.0, 1e3, 1e308])
def test_the_smoothest_noise_is_the_longest_waves(smooth):
    """Of sides 32 and 24 that is cos(2 pi y / 32 + phase), with any phase."""
    z = target_maps.random((3, 32, 24), 3, smooth).double().log()
    z = z - z.mean((1, 2), keepdim=True)
    assert z.square().mean((1, 2)).tolist() == pytest.approx([1.0] * 3, rel=1e-4)
    power = torch.fft.fft2(z).abs().square()
    assert bool((power[:, [1, -1], 0].sum(1) > 0.999 * power.sum((1, 2))).all())
    assert not torch.allclose(z[0], z[1], atol=1e-2)


def test_shapes_are_where_they_were_drawn():
    h = target_maps.rectangle((2, 10, 20), (0.2, 0.5, 0.6, 0.75))
    assert is_target(h, (2, 10, 20)) and bool((h[:, 2:6, 10:15] == 1 / 20).all()) and h.count_nonzero() == 40
    frame = target_maps.rectangle((1, 20, 20), (0, 0, 1, 1), frame=0.1)
    assert frame.count_nonzero() == 400 - 256 and bool((frame[0, 2:-2, 2:-2] == 0).all())
    disc = target_maps.disc((1, 64, 48), (0.25, 0.5), 0.25)
    assert disc.count_nonzero().item() == pytest.approx(np.pi * 12**2, rel=0.03)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    assert (disc[0] * y).sum().item() == pytest.approx(16) and (disc[0] * x).sum().item() == pytest.approx(24)


def test_masks_from_tensors_and_files(tmp_path):
    drawn = torch.rand(3, 5, 7)
    torch.testing.assert_close(target_maps.mask((3, 5, 7), drawn), reduce_map(drawn, None))
    integers = target_maps.mask((2, 5, 7), (drawn[0] * 100).int())
    assert is_target(integers, (2, 5, 7)) and torch.equal(integers[0], integers[1])
    assert is_target(target_maps.mask((0, 5, 7), drawn[0]), (0, 5, 7))
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:20, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    h = target_maps.mask((1, 8, 8), tmp_path / "corner.png")
    assert bool((h[0, :4, 4:] == 1 / 16).all()) and h.count_nonzero() == 16


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.float64, 1e308)])
def test_masks_of_large_values_have_sum_one(dtype, value):
    h = target_maps.mask((2, 8, 8), torch.full((8, 8), value, dtype=dtype))
    assert h.dtype == dtype and bool((h == 1 / 64).all())


def test_text_fills_its_image_and_differs():
    h = target_maps.text((2, 32, 48), ["no", "yes"])
    assert is_target(h, (2, 32, 48)) and not torch.equal(h[0], h[1])
    for one in h:
        rows, columns = (one.sum(d) > 0.02 * one.sum(d).amax() for d in (1, 0))
        fills = [(int(s.nonzero().max() - s.nonzero().min()) + 1) / len(s) for s in (rows, columns)]
        assert max(fills) > 0.85 and min(fills) > 0.3
        edges = torch.cat([one[0], one[-1], one[:, 0], one[:, -1]])
        assert edges.max() < 0.2 * one.max()
    lines = target_maps.text((1, 32, 32), "a\nb")[0].sum(1)
    assert lines[15:17].sum() < 0.25 * lines.amax()


def test_maps_of_other_images_are_those_of_the_explainer():
    x, _ = pairs()
    for explainer in (Gradient(cnn()), IntegratedGradients(cnn(), n_steps=4)):
        want = reduce_map(explainer.attribute(x)).detach()
        assert torch.equal(target_maps.of(x, explainer), want)
    assert torch.equal(target_maps.of(x, explainer, 2), reduce_map(explainer.attribute(x, 2)).detach())


@pytest.mark.parametrize(
    "h",
    [
        target_maps.uniform((3, 8, 8)),
        target_maps.text((3, 8, 8), "x"),
        target_maps.random((3, 8, 8), smooth=1.0),
        target_maps.disc((3, 8, 8)),
        target_maps.rectangle((3, 8, 8), (0, 0, 0.5, 0.5)),
    ],
)
def test_they_are_ready_for_perturb(h):
    x, _ = pairs()
    attack = Manipulation(Gradient(cnn().float()), steps=3, bounds=CHANNELS)
    assert attack.perturb(x.float(), h).images.shape == x.shape


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: target_maps.uniform((2, 3)), ValueError, r"size must be \(N, H, W\), got \(2, 3\)"),
        (lambda: target_maps.uniform((2, 0, 3)), ValueError, "size must be"),
        (lambda: target_maps.uniform(None), ValueError, r"size must be \(N, H, W\), got None"),  # type: ignore[arg-type]
        (lambda: target_maps.uniform((True, 3, 3)), ValueError, "size must be"),
        (lambda: target_maps.rectangle((1, 9, 9), (0, 0, 1)), ValueError, r"box must be .*, got \(0, 0, 1\)"),  # type: ignore[arg-type]
        (lambda: target_maps.rectangle((1, 9, 9), (0, 0, 1, np.nan)), ValueError, "box must be .*finite numbers, got"),
        (lambda: target_maps.rectangle((1, 9, 9), ("a", 0, 1, 1)), ValueError, "box must be .*finite numbers, got"),  # type: ignore[arg-type]
        (lambda: target_maps.rectangle((1, 9, 9), (0, 0, 0, 1)), ValueError, "box, frame must hold the centre of a"),
        (lambda: target_maps.rectangle((1, 9, 9), (0, 0, 1, 1), frame=np.nan), ValueError, "frame must be finite and"),
        (lambda: target_maps.disc((1, 9, 9), (0.5,)), ValueError, r"centre must be .*, got \(0\.5,\)"),  # type: ignore[arg-type]
        (lambda: target_maps.disc((1, 9, 9), (9, 9)), ValueError, r"centre, radius must .*\(\(9, 9\), 0\.25\)"),
        (lambda: target_maps.disc((1, 9, 9), radius=-0.25), ValueError, "radius must be finite and positive, got -"),
        (lambda: target_maps.mask((1, 2, 2), np.ones((2, 2))), TypeError, "drawn must be a tensor .*, got ndarray"),  # type: ignore[arg-type]
        (lambda: target_maps.mask((1, 2, 2), torch.zeros(2, 2)), ValueError, "drawn must have something above 0"),
        (lambda: target_maps.mask((1, 2, 2), -torch.eye(2)), ValueError, r"drawn must be finite .* -1\.0 \.\. -?0\.0"),
        (lambda: target_maps.mask((1, 2, 2), torch.ones(2, 3)), ValueError, r"drawn must have shape \[2, 2\] or"),
        (lambda: target_maps.mask((1, 2, 2), "nowhere.png"), FileNotFoundError, "drawn must name an existing image"),
        (lambda: target_maps.mask((1, 2, 2), __file__), ValueError, "drawn must name an image that Pillow can read"),
        (lambda: target_maps.text((2, 9, 9), ["a"]), ValueError, "words must be one or 2, got 1"),
        (lambda: target_maps.text((2, 9, 9), " "), ValueError, "words must show something"),
        (lambda: target_maps.text((1, 9, 9), None), TypeError, "words must be a str .*, got None"),  # type: ignore[arg-type]
        (lambda: target_maps.text((1, 9, 9), [3]), TypeError, r"words must be a str .*, got \[3\]"),  # type: ignore[list-item]
        (lambda: target_maps.disc((1, 9, 9), radius=0.0), ValueError, "radius must be finite and positive"),
        (lambda: target_maps.random((1, 9, 9), smooth=-1), ValueError, "smooth must be finite and not negative"),
        (lambda: target_maps.random((2, 9, 9), index=torch.arange(3)), ValueError, r"index must have shape \[2\]"),
        (lambda: target_maps.random((1, 9, 9), index=torch.ones(1)), TypeError, "index must hold integers, got torch"),
        (lambda: target_maps.random((1, 9, 9), index=[1]), TypeError, r"index must be a torch\.Tensor, got list"),  # type: ignore[arg-type]
        (lambda: target_maps.random((1, 9, 9), 1.5), TypeError, r"seed must be an int, got 1\.5"),  # type: ignore[arg-type]
        (lambda: target_maps.of(torch.ones(1, 4), Gradient(cnn())), ValueError, r"images must have shape \[N, C, H"),
        (lambda: target_maps.of(torch.ones(2, 3, 8, 8) / 0, Gradient(cnn())), ValueError, "images must be finite, got"),
        (lambda: target_maps.of(torch.zeros(1, 3, 8, 8), cnn()), TypeError, "explainer must be a fastxai explainer"),  # type: ignore[arg-type]
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_they_are_public():
    assert fastxai.attacks.target_maps is target_maps
