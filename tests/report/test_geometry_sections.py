"""What the sections of the geometry study say of rows that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fastxai import studies
from fastxai.report import Findings, Panels, Table, build_sections, draw
from fastxai.results import ResultStore, Row

TITLES = {name: str(table["title"]) for name, table in studies.load("geometry").methods.items()}
METRICS = ("pcc", "ssim", "mse")
RUN = {"model": "demo", "size": 8, "space": {"name": "normalised"}, "preset": "cifar10", "steps": None, "seed": 0}


def row(experiment: str, method: str, pairs: range, settings: dict[str, object], **values: object) -> Row:
    key = {"method": method, "pairs": list(pairs)}
    return Row("geometry", experiment, key, {"run": RUN, "settings": settings}, values, 1.0, "a machine")


def attack(experiment: str, method: str, pairs: range, before: float, after: float, kept: int) -> Row:
    """Pair i has what pair 0 has and i / 100 more; the last ones lose their class."""
    columns = {
        f"{w}.{m}": v
        for w, v in {"map_to_target_before": before, "map_to_target": after, "image": 0.9}.items()
        for m in METRICS
    }
    if experiment.startswith("smooth_grad"):
        columns["fresh_to_target.pcc"] = before
    columns |= {"softmax_change": 0.2, "logit_change": 1.0, "confidence_before": 0.9, "confidence_after": 0.8}
    values = {name: [first + i / 100 for i in pairs] for name, first in columns.items()}
    return row(experiment, method, pairs, {}, last_class_kept=[i < kept for i in range(len(pairs))], **values)


def found(folder: Path, *rows: Row) -> Findings:
    store = ResultStore(folder)
    for each in rows:
        store.write(each)
    return Findings(store, "geometry", TITLES)


def section(findings: Findings, name: str) -> tuple[list[Table], list[Panels]]:
    """The tables and the panels of a section."""
    blocks = build_sections(findings, [name])[name].blocks
    return [b for b in blocks if isinstance(b, Table)], [b for b in blocks if isinstance(b, Panels)]


def test_attacks_on_smoothed_maps_are_compared_on_the_pairs_that_all_have(tmp_path: Path) -> None:
    findings = found(
        tmp_path,
        attack("manipulation", "gradient", range(100), 0.1, 0.5, 100),
        attack("beta_smoothing", "gradient", range(5), 0.7, 0.8, 4),
        attack("manipulation", "lrp", range(100), 0.1, 0.5, 100),
        attack("smooth_grad", "guided_backprop", range(3), 0.3, 0.4, 3),
        attack("smooth_grad_fixed", "guided_backprop", range(3), 0.3, 0.9, 3),
    )
    [table], panels = section(findings, "scatter")
    assert [dict(zip(table.head, cells, strict=True)) for cells in table.rows] == [
        {
            "method": "Guided Backprop" if "SmoothGrad" in attacked else "Gradient",
            "attacked map": attacked,
            "pairs": pairs,
            "class kept to the end": kept,
            "softmax change": change,
            "image: SSIM": image,
            "map: PCC before": before,
            "map: PCC after": after,
            "map: SSIM before": before,
            "map: SSIM after": after,
            "map: PCC, other noise": before if "SmoothGrad" in attacked else draw.UNKNOWN,
        }
        for attacked, pairs, kept, change, image, before, after in (
            ("plain", "5", "100%", "0.22", "0.920", "0.12", "0.52"),
            ("\N{GREEK SMALL LETTER BETA}-smoothing", "5", "80.0%", "0.22", "0.920", "0.72", "0.82"),
            ("SmoothGrad", "3", "100%", "0.21", "0.910", "0.31", "0.41"),
            ("SmoothGrad, fixed noise", "3", "100%", "0.21", "0.910", "0.31", "0.91"),
        )
    ]
    assert "the lower" not in table.caption and "before" in table.caption
    assert len(panels[0].figures) == len(METRICS)
    points = panels[0].figures[0].axes[0].collections[0].get_offsets()
    assert len(np.asarray(points)) == 5 and panels[-1].caption.endswith("all methods; 5 pairs.")


def test_smoothed_attacks_alone_have_their_table(tmp_path: Path) -> None:
    findings = found(tmp_path, attack("smooth_grad", "lrp", range(2), 0.3, 0.4, 2))
    [table], panels = section(findings, "scatter")
    assert [cells[:3] for cells in table.rows] == [["LRP", "SmoothGrad", "2"]] and panels == []
    assert section(found(tmp_path / "none"), "scatter") == ([], [])


def test_a_share_is_whole_only_where_all_are(tmp_path: Path) -> None:
    kept = {0: "0.0%", 1: "0.1%", 996: "99.6%", 999: "99.9%", 1000: "100%"}
    for count, said in kept.items():
        assert draw.share(np.arange(1000) < count) == said
    assert draw.share(np.arange(10000) < 9999) == "99.9%"
    findings = found(
        tmp_path,
        attack("manipulation", "gradient", range(250), 0.1, 0.5, 249),
        attack("manipulation", "lrp", range(10), 0.1, 0.5, 10),
    )
    (medians, claims), _ = section(findings, "summary")
    assert [cells[2] for cells in medians.rows] == ["99.6%", "100%"]
    assert claims.rows[0][2] == "99.6% .. 100%"


def test_rows_without_the_last_iterate_leave_its_cells_empty(tmp_path: Path) -> None:
    whole = attack("manipulation", "gradient", range(4), 0.1, 0.5, 4)
    without = replace(whole, values={k: v for k, v in whole.values.items() if k != "last_class_kept"})
    (medians, claims), _ = section(found(tmp_path, without), "summary")
    assert medians.rows[0][2] == claims.rows[0][2] == draw.UNKNOWN and medians.rows[0][4] == "0.52"


def test_captions_say_how_many_pairs_they_rest_on(tmp_path: Path) -> None:
    betas, alike = [1.0, 10.0], {f"to_plain.{m}": [[0.5, 0.9]] * 2 for m in METRICS}
    swept = {
        f"to_{w}.{m}": [[0.5, 0.9]] * 2
        for w in ("target", "original", "smoothed_target", "smoothed_original")
        for m in METRICS
    }
    curves = {
        "a.image_mse": [[0.0, 1.0]],
        "a.map_mse": [[1.0, 0.5]],
        "a.best_image_mse": [1.0],
        "a.best_map_mse": [0.5],
    }
    links = dict.fromkeys(("moved", "total", "spectral", "frobenius", "jumps", "closure"), [[1.0, 2.0]] * 7)
    correct = {f"{name}.correct": [[True, False]] * 4 for name in ("none", "random")}
    findings = found(
        tmp_path,
        row("beta_sweep", "gradient", range(2), {}, betas=betas, **swept),
        row("beta_sweep", "lrp", range(2, 4), {}, betas=betas, **swept),
        row("sigma_sweep", "gradient", range(2), {}, noises=betas, **swept),
        row("sigma_sweep", "lrp", range(2), {}, noises=betas, **swept),
        row("sigma_sweep", "lrp", range(2, 4), {}, noises=betas, **swept),
        row("softplus", "gradient", range(2), {}, betas=betas, **alike),
        row(
            "growth",
            "gradient",
            range(1),
            {"courses": {"a": 10.0}},
            steps=[0, 1],
            **{"a.last_class_kept": [True]},
            **curves,
        ),
        row("chain", "gradient", range(7), {}, betas=betas, **links),
        row("flipping", "gradient", range(4), {"defences": {"none": {}}}, fractions=[0.0, 1.0], **correct),
    )
    for name, said in {
        "beta_curves": "over 2 pairs;",
        "sigma_curves": "over Gradient 2 pairs, LRP 4 pairs;",
        "softplus": "over 2 images;",
        "growth": "1 pair",
        "chain": "over 7 pairs",
        "flipping": "4 images.",
    }.items():
        tables, panels = section(findings, name)
        assert panels and all(said in block.caption for block in (*tables, *panels)), name
    for block in [each for blocks in section(findings, "flipping") for each in blocks]:
        assert "the better the map" in block.caption and "for comparison" in block.caption


def test_costs_are_ratios_within_a_repeat(tmp_path: Path) -> None:
    defences = {"none": {}, "beta_smoothing": {}, "smooth_grad_10": {}}
    # Times that wander: the medians' ratio is 6, that of a repeat 2 in the median.
    plain, smoothed = [0.001, 0.003, 0.001, 0.001, 0.003], [0.002, 0.006, 0.006, 0.006, 0.006]
    findings = found(
        tmp_path,
        row(
            "run_time",
            "gradient",
            range(2),
            {"defences": defences},
            images=2,
            **{"none.seconds": plain, "beta_smoothing.seconds": smoothed, "smooth_grad_10.seconds": [0.01] * 5},
        ),
        row("run_time", "lrp", range(2), {"defences": {"none": {}}}, images=2, **{"none.seconds": plain}),
    )
    [table], [panels] = section(findings, "run_time")
    beta, dash = "\N{GREEK SMALL LETTER BETA}-smoothing", "\N{EN DASH}"
    assert list(table.head[:4]) == ["method", "plain, ms", f"{beta}, ms", f"{beta} / plain"]
    assert list(table.rows[0]) == ["Gradient", "1", "6", "2.00 (2.00 .. 6.00)", "10", "10.00 (3.33 .. 10.00)"]
    assert list(table.rows[1]) == ["LRP", "1", *[dash] * 4]
    assert "in batches of 2, on a machine: medians over 5 repeats" in table.caption
    [axes] = panels.figures[0].axes
    assert axes.get_xscale() == "log" and not axes.patches, "lengths mean nothing on a logarithmic axis"
    points = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert points == [pytest.approx([1, 1]), pytest.approx([6]), pytest.approx([10])]
    quartiles = [np.asarray(path.vertices)[:, 0].tolist() for path in axes.collections[0].get_paths()]
    assert quartiles == [pytest.approx([1, 3])] * 2


def lab(colour: str) -> np.ndarray:
    """CIE L*a*b* of a colour in D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / (0.9505, 1.0, 1.089))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_are_clearly_distinct() -> None:
    apart = [np.linalg.norm(lab(a) - lab(b)) for i, a in enumerate(draw.COLOURS) for b in draw.COLOURS[:i]]
    assert min(apart) > 40 and len(draw.COLOURS) == len(TITLES)
