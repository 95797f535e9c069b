"""Colours, grids and the demo's figure."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from fastxai.viz import Exhibit, Panel, Row, demo_figure, grid, heatmap, maps_figure, overlay, save_figure


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts_outside(figure):
    """Texts that leave the figure, and pairs of texts or pictures that overlap."""
    renderer = figure.canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in figure.texts if t.get_text()]
    boxes += [("picture", axes.get_window_extent(renderer)) for axes in figure.axes]
    inside = figure.bbox
    wrong = [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > inside.x1 or box.y1 > inside.y1]
    for i, (text, box) in enumerate(boxes):
        wrong += [(text, other) for other, place in boxes[i + 1 :] if box.overlaps(place)]
    return wrong


def test_unsigned_colours_run_from_zero_to_the_largest():
    out = heatmap(torch.tensor([[[0.0, 1.0, 2.0, -3.0, 4.0]]]))
    expected = colormaps["inferno"](np.array([0, 0.25, 0.5, 0, 1.0]))[:, :3]
    torch.testing.assert_close(out[0, :, 0].T, torch.from_numpy(expected).float())


def test_signed_colours_are_symmetric():
    out = heatmap(torch.tensor([[[-4.0, -1.0, 0.0, 1.0, 2.0]]]), signed=True)
    expected = colormaps["RdBu_r"](np.array([0, 0.375, 0.5, 0.625, 0.75]))[:, :3]
    torch.testing.assert_close(out[0, :, 0].T, torch.from_numpy(expected).float())
    assert out[0, 2, 0, 0] > out[0, 0, 0, 0] and out[0, 0, 0, 4] > out[0, 2, 0, 4]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(1e-30, 1e30), st.booleans(), st.floats(0.5, 1))
def test_colours_do_not_depend_on_scale(seed, scale, signed, quantile):
    values = maps(3, 4, 5, seed=seed).double()
    out = heatmap(values, signed=signed, quantile=quantile)
    assert out.shape == (3, 3, 4, 5) and out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1
    # A rescaled value may round into the neighbouring one of 256 colours.
    torch.testing.assert_close(heatmap(values * scale, signed=signed, quantile=quantile), out, rtol=0, atol=0.03)


def test_each_map_has_its_own_scale_and_extremes_saturate():
    values = maps(2, 6, 6).abs()
    assert torch.equal(heatmap(values), torch.cat([heatmap(v[None]) for v in values]))
    values[0, 0, 0] = 1e6
    clipped = heatmap(values, quantile=0.9)[0]
    brightest = torch.tensor(colormaps["inferno"](1.0)[:3], dtype=torch.float32)
    assert (clipped == brightest.view(3, 1, 1)).all(0).sum() >= 3


def test_zero_map_and_empty_batch():
    zero = torch.zeros(1, 2, 2)
    assert heatmap(zero).max() < 0.02
    assert heatmap(zero, signed=True).min() > 0.95
    assert heatmap(zero[:0]).shape == (0, 3, 2, 2)
    assert overlay(torch.zeros(0, 3, 2, 2), zero[:0]).shape == (0, 3, 2, 2)


def test_overlay_mixes_grey_image_and_colours():
    images = maps(2, 3, 5, 6).sigmoid()
    values = maps(2, 5, 6)
    values[0, 1, 1], values[0, 2, 2] = 0, values[0].abs().max() * 2
    out = overlay(images, values, signed=True, strength=1.0)
    grey = (images * torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1)
    torch.testing.assert_close(out[0, :, 1, 1], grey[0, 1, 1].expand(3))
    torch.testing.assert_close(out[0, :, 2, 2], heatmap(values, signed=True)[0, :, 2, 2])
    torch.testing.assert_close(overlay(images, values, strength=0.0), grey[:, None].expand(-1, 3, -1, -1))
    assert out.min() >= 0 and out.max() <= 1


def test_wrong_arguments():
    with pytest.raises(TypeError, match="maps must have a floating point dtype"):
        heatmap(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"maps must have shape \[N, H, W\], got \[2, 2\]"):
        heatmap(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="maps must be finite"):
        heatmap(torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\], got 0"):
        heatmap(torch.zeros(1, 2, 2), quantile=0)
    with pytest.raises(ValueError, match=r"images must have shape \[1, 3, 2, 2\]"):
        overlay(torch.zeros(1, 3, 2, 3), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="strength must be in"):
        overlay(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), strength=2)
    with pytest.raises(ValueError, match="rows must hold at least one panel"):
        grid([])
    with pytest.raises(ValueError, match="rows must hold at least one panel"):
        grid([Row([])])
    with pytest.raises(ValueError, match="picture must be"):
        grid([Row([Panel(torch.zeros(1, 4, 4))])])
    with pytest.raises(ValueError, match="side must be finite and positive"):
        grid([Row([Panel(torch.zeros(4, 4))])], side=0)


def test_grid_places_everything_apart():
    image, values = maps(3, 8, 8).sigmoid(), maps(8, 8)
    wide = maps(3, 4, 12).sigmoid()
    rows = [
        Row(
            [Panel(image, "image", "one line"), Panel(values, "map", "two\nlines", signed=True), Panel(wide)], "Short."
        ),
        Row([Panel(values.abs(), "map")], "A caption that is much longer than the figure is wide, " * 4),
        Row([Panel(image)]),
    ]
    figure = grid(rows, "The heading")
    assert len(figure.axes) == 5
    assert texts_outside(figure) == []
    lefts = [axes.get_position(original=True).x0 for axes in figure.axes]
    assert lefts[0] == lefts[3] == lefts[4]
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown is not None
    np.testing.assert_allclose(shown, image.permute(1, 2, 0), atol=1e-6)


def test_long_titles_are_cut_and_long_notes_wrapped():
    image, name = maps(3, 8, 8).sigmoid(), "a_photo_with_$a_very_long_name$_of_a_cat.png"
    note = "black-and-gold garden spider, Argiope aurantia, 95.0%"
    figure = grid([Row([Panel(image, name, note), Panel(image, "W" * 60), Panel(image, "short")], "Caption.")] * 2)
    assert texts_outside(figure) == []
    first, *_ = (text.get_text() for text in figure.texts)
    start, end = first.split("\u2026")
    assert len(start) + len(end) > 15 and name.startswith(start) and name.endswith(end)
    words = [text.get_text() for text in figure.texts]
    assert "short" in words and note in " ".join(words)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("overlays", [False, True])
def test_maps_figure_has_the_image_first_then_every_method(signed, overlays):
    images, count = maps(3, 3, 6, 6).sigmoid(), 9
    values = {f"Integrated Gradients {i}": 10.0**i * maps(3, 6, 6, seed=i) for i in range(count)}
    titles, notes = ["one.png", "two.png", "three.png"], ["cat, 61.0%\nexplained: dog", "dog, 3.1%", ""]
    figure = maps_figure(images, values, titles, notes, signed=signed, overlays=overlays)
    columns = 1 + count * (1 + overlays)
    assert len(figure.axes) == 3 * columns
    assert texts_outside(figure) == []
    shown = [axes.get_images()[0].get_array() for axes in figure.axes]
    for row in range(3):
        np.testing.assert_allclose(shown[row * columns], images[row].permute(1, 2, 0), atol=1e-6)
        for i, one in enumerate(values.values()):
            place = row * columns + 1 + i * (1 + overlays)
            expected = heatmap(one[row : row + 1], signed=signed, quantile=0.99)[0]
            np.testing.assert_allclose(shown[place], expected.permute(1, 2, 0), atol=1e-6)
            if overlays:
                over = overlay(images, one, signed=signed, quantile=0.99)[row]
                np.testing.assert_allclose(shown[place + 1], over.permute(1, 2, 0), atol=1e-6)
    words = [text.get_text() for text in figure.texts]
    for text in (*titles, *values, "explained: dog"):
        assert text in words
    assert ("Red" in " ".join(words)) == signed


def test_maps_figure_refuses_what_does_not_fit():
    images, fitting = maps(2, 3, 6, 6).sigmoid(), {"map": maps(2, 6, 6)}
    for arguments, message in (
        ((images[:, :2], fitting), r"images must have shape \[N, 3, H, W\], N at least 1, got \[2, 2, 6, 6\]"),
        ((images[:0], {"map": maps(0, 6, 6)}), "N at least 1"),
        ((images, {}), "maps must hold at least one method"),
        ((images, {"map": maps(2, 6, 5)}), r"maps\['map'\] must have shape \[2, 6, 6\], got \[2, 6, 5\]"),
        ((images, fitting, ["one"]), "titles must be 2 or none, got 1"),
        ((images, fitting, (), ["one"]), "notes must be 2 or none, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            maps_figure(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"maps\['map'\] must have a floating point dtype"):
        maps_figure(images, {"map": torch.zeros(2, 6, 6, dtype=torch.int64)})


def story():
    image, goal = maps(3, 16, 16).sigmoid(), maps(3, 16, 16, seed=1).sigmoid()
    own, wanted = maps(16, 16, seed=2).abs(), maps(16, 16, seed=3).abs()
    return (
        Exhibit(image, own, "automobile, 100 %"),
        Exhibit(goal, wanted, "cat, 53 %"),
        Exhibit((image + 0.01).clamp(0, 1).requires_grad_(), wanted + 0.1 * own, "automobile, 100 %"),
    )


@pytest.mark.parametrize("extra", [False, True])
def test_demo_figure_says_what_it_shows(extra):
    original, target, manipulated = story()
    recovered = original.map + 0.1 * target.map
    figure = demo_figure(
        original, target, manipulated, recovered, 0.8, "gradient", original.map.clone() if extra else None
    )
    words = "\n".join(text.get_text() for text in figure.texts)
    assert len(figure.axes) == 8
    assert texts_outside(figure) == []
    assert "\u03b2 = 0.8" in words and "automobile, 100 %" in words and "cat, 53 %" in words
    assert "is closer to the original map" in " ".join(words.split())
    assert "largest: 2.6 of 255 levels" in words or "largest: 2.5 of 255 levels" in words
    assert ("vs smoothed original: PCC 0.99" in words) == extra


def test_demo_figure_does_not_claim_a_repair_that_failed():
    original, target, manipulated = story()
    figure = demo_figure(original, target, manipulated, target.map, 10.0)
    words = " ".join("\n".join(text.get_text() for text in figure.texts).split())
    assert "is closer to the target map" in words and "closer to the original" not in words


def test_saved_figure_is_a_whole_png(tmp_path):
    figure = grid([Row([Panel(maps(3, 8, 8).sigmoid(), "image")])], "Heading")
    file = save_figure(figure, tmp_path / "deep" / "figure.png", dpi=60)
    with Image.open(file) as image:
        width, height = image.size
        pixels = np.array(image)
    assert (width, height) == tuple(int(side * 60) for side in figure.get_size_inches())
    assert pixels.shape[2] == 3 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 30
    assert list(file.parent.iterdir()) == [file]


def test_pyplot_is_not_needed(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    save_figure(demo_figure(*story(), maps(16, 16).abs(), 1.0), tmp_path / "x.png", dpi=40)
    assert ("matplotlib.pyplot" in sys.modules) == loaded
