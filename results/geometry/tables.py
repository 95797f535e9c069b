"""The tables of README.md, from the rows: ``python tables.py`` writes them into it, ``--check`` says if they differ.

A table stands under a line ``<!-- tables.py NAME FOLDER ... -->``, up to the next empty line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fastxai import studies
from fastxai.report import Findings, draw
from fastxai.results import ResultStore

HERE = Path(__file__).parent
TITLES = {name: str(table["title"]) for name, table in studies.load("geometry").methods.items()}
NETWORKS = {"cnn": "CNN", "resnet20": "ResNet-20", "squeezenet_unit": "SqueezeNet"}
ATTACKS = ("manipulation", "beta_smoothing", "beta_smoothing_matched", "smooth_grad", "smooth_grad_fixed")
BETAS = (100.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0)


def found(folder: str) -> Findings:
    """Return the rows of a folder."""
    findings = Findings(ResultStore(HERE / folder / "rows"), "geometry", TITLES)
    if not findings.rows:
        sys.exit(f"{HERE / folder} has no rows")
    return findings


def short(value: float, places: int = 2) -> str:
    """Return .92, -.05 or 3.9e-3."""
    if np.isnan(value):
        return ""
    if value != 0 and abs(value) < 0.095 and places == 1:
        return re.sub("e-0", "e-", f"{value:.1e}")
    said = f"{value:.{max(places, 2)}f}"
    return re.sub(r"^(-?)0\.", r"\1.", said.removeprefix("-") if float(said) == 0 else said)


class Medians:
    """Medians over some pairs of an experiment and method; NaN for what its rows do not hold."""

    def __init__(self, findings: Findings, experiment: str, method: str, pairs: Sequence[int] | None = None) -> None:
        """Take all pairs if None are given."""
        self.findings, self.experiment, self.method = findings, experiment, method
        mine = findings.pairs(experiment, method)
        self.which = [number in (mine if pairs is None else pairs) for number in mine]

    def all(self, name: str) -> np.ndarray:
        """Return the values themselves."""
        if not self.findings.holds(self.experiment, self.method, name):
            return np.array([np.nan])
        return self.findings.over_pairs(self.experiment, self.method, name)[self.which]

    def __call__(self, name: str, places: int = 2) -> str:
        """Return the median of a value."""
        return short(float(np.median(self.all(name))), places)

    @property
    def kept(self) -> str:
        """In how many pairs the attack's last iterate has the class."""
        kept = self.all("last_class_kept")
        return "" if np.isnan(kept).any() else draw.share(kept).replace("%", " %")

    @property
    def cells(self) -> list[str]:
        """What tables of attacks have in common."""
        names = ("map_to_target_before.pcc", "map_to_target.pcc", "map_to_target.ssim")
        return [self.kept, *map(self, names), self("image.ssim", 3), self("softmax_change", 1)]


def maps(folder: str) -> list[list[str]]:
    """Return the attacks on plain maps."""
    findings = found(folder)
    rows = [["map", "pairs", "class kept to the end", "PCC before", "after", "SSIM after", "SSIM of the images"]]
    rows[0].append("change of the softmax")
    for method in findings.methods("manipulation"):
        count = str(len(findings.pairs("manipulation", method)))
        rows.append([TITLES[method], count, *Medians(findings, "manipulation", method).cells])
    return rows


def smoothed(folder: str) -> list[list[str]]:
    """Return the attacks on smoothed maps and on the plain ones, on the pairs that all of a map have."""
    findings = found(folder)
    rows = [["map", "attacked", "pairs", "class kept to the end", "PCC before", "after", "SSIM after"]]
    rows[0] += ["SSIM of the images", "change of the softmax", "PCC, other noise"]
    for method, title in TITLES.items():
        attacks = [one for one in ATTACKS if method in findings.methods(one)]
        if attacks in ([], ["manipulation"]):
            continue
        pairs = sorted(set.intersection(*(set(findings.pairs(one, method)) for one in attacks)))
        for one in attacks:
            medians = Medians(findings, one, method, pairs)
            fresh = medians("fresh_to_target.pcc")
            rows.append([title, draw.smoothing(one), str(len(pairs)), *medians.cells, fresh])
    return rows


def sweep(*folders: str) -> list[list[str]]:
    """Return PCC with the plain target map and original map over beta, the highest of the latter marked."""
    rows = [["network, map", *(f"β = {BETAS[0]:g}", *(f"{beta:g}" for beta in BETAS[1:]))]]
    for folder in folders:
        findings = found(folder)
        for method in findings.methods("beta_sweep"):
            betas = findings.common("beta_sweep", method, "betas")
            target, original = (
                np.median(findings.over_pairs("beta_sweep", method, f"to_{what}.pcc"), 0)
                for what in ("target", "original")
            )
            places = [betas.index(beta) for beta in BETAS]
            best = max(places[1:], key=lambda place: original[place])
            cells = []
            for place in places:
                said = short(original[place])
                marked = f"**{said}**" if place == best and original[best] > original[places[0]] else said
                cells.append(f"{short(target[place])}, {marked}")
            rows.append([f"{NETWORKS[folder]}, {TITLES[method]}", *cells])
    return rows


def chain(*folders: str) -> list[list[str]]:
    """Return the links of the chain."""
    rows = [["network, β", "change / ∫‖H dx‖", "∫‖H dx‖ / (max ‖H‖₂ L)", "max ‖H‖₂ / max ‖H‖_F", "jumps / change"]]
    rows[0].append("eq. 4 missed by")
    for folder in folders:
        findings = found(folder)
        for place, beta in enumerate(findings.common("chain", "gradient", "betas")):
            names = ("moved", "total", "spectral", "frobenius", "jumps", "closure")
            link = {name: findings.over_pairs("chain", "gradient", name)[:, place] for name in names}
            pairs = (("moved", "total"), ("total", "spectral"), ("spectral", "frobenius"), ("jumps", "moved"))
            ratios = [f"{np.median(link[a] / link[b]):.2g}".replace("0.", ".", 1) for a, b in pairs]
            rows.append([f"{NETWORKS[folder]}, {beta:g}", *ratios, f"{100 * np.median(link['closure']):.2g} %"])
    return rows


TABLES: dict[str, Callable[..., list[list[str]]]] = {"maps": maps, "smoothed": smoothed, "sweep": sweep, "chain": chain}


def markdown(name: str, *folders: str) -> str:
    """Return a table as it stands in the README."""
    head, *rows = TABLES[name](*folders)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def written(text: str) -> str:
    """Return the text with its tables made anew; it must have some."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{markdown(*match[2].split())}\n"

    made, count = re.subn(r"(<!-- tables\.py (.+?) -->)\n(?:\|.*\n)*", block, text)
    return made if count else sys.exit("README.md has no line <!-- tables.py NAME FOLDER ... -->")


if __name__ == "__main__":
    readme = HERE / "README.md"
    old = readme.read_text()
    new = written(old)
    if "--check" in sys.argv:
        sys.exit(f"{readme} has tables that are not those of the rows: run tables.py" if new != old else 0)
    readme.write_text(new)
