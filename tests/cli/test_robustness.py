"""The study of networks: trained and measured, stopped and resumed by row and by epoch, a page beside the paper's."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.runs import data, drawn, findings, interrupted, made_whole, rows
from evaluation.small import SPACE, small_net
from safetensors.torch import load_file, save_file

import fastxai
from fastxai import evaluation, report, studies
from fastxai.cli import _networks, main, train
from fastxai.data import save_npz
from fastxai.report.sections import _networks as networks
from fastxai.results import ResultStore

PLAIN, ROBUST = "wd0_relu_hess0", "wd5e-4_beta10_hess1e-6"
QUICK = (
    "study robustness --data npz:data.npz --model little:build --mean .4 .5 .6 --std .2 .25 .3 --epochs 1 "
    "--set fit.batch=4 --samples 7 --batch 4"
)
BOTH = f"{QUICK} --networks {PLAIN} {ROBUST}"
FEW = f"{QUICK} --networks {PLAIN} --only accuracy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    (folder / "little.py").write_text("from evaluation.small import small_net as build\n")
    save_npz(folder / "data.npz", data(), data())
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Both networks, everything measured, made once."""
    return made_whole(folder, BOTH)


def texts(folder: str | Path) -> dict[str, str]:
    """The values of every row as the text in its file."""
    files = (Path(folder) / "rows").glob("*.json")
    values = {file.name: json.loads(file.read_text())["values"] for file in files}
    return {name: json.dumps({k: v for k, v in found.items() if k != "seconds"}) for name, found in values.items()}


def test_rows_say_how_the_network_was_trained(whole: Path) -> None:
    trained = {row.key["model"]: row for row in rows(whole, experiment="train")}
    assert trained.keys() == {PLAIN, ROBUST}
    for row in trained.values():
        assert row.study == "robustness" and row.seconds > 0 and "torch" in row.machine
        assert row.values["epochs"] == 1 and row.values["seed"] == 0 and len(row.values["losses"]) == 1
        assert 0 <= row.values["accuracy"] <= 1
    settings = trained[ROBUST].config["settings"]
    assert settings["fit.weight_decay"] == 5e-4
    assert settings["terms.hessian_norm"] == {"weight": 1e-6, "reduction": "sum"}
    assert settings["model.activation"] == "softplus" and settings["model.beta"] == 10 and settings["fit.batch"] == 4
    assert "hessian_norm" in trained[ROBUST].values and "hessian_norm" not in trained[PLAIN].values
    # The tiny network's activations are those that the study asks for.
    made = train.network({"network": "evaluation.small:small_net", "activation": "softplus", "beta": 10.0}, 0)
    assert [type(layer).__name__ for layer in made.children()].count("Softplus") == 2


def test_what_is_measured_is_what_the_file_holds(whole: Path) -> None:
    weights = load_file(whole / "models" / f"{PLAIN}.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    model = small_net()
    model.load_state_dict(weights)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), small_net().parameters(), strict=True))
    net = fastxai.compile(model)
    x = SPACE.enter(data().images[:7].float() / 255)
    found = networks.Network(PLAIN, rows(whole, experiment="train")[0], rows(whole, model=PLAIN))
    assert found.accuracy == pytest.approx(100 * evaluation.accuracy(net, x, data().labels[:7]))
    norms = list(evaluation.weight_norms(model).values())
    assert found.weight_norm == pytest.approx(sum(norms) / len(norms))
    assert math.isnan(found.hessian_norm("normalised"))
    assert {len(found.stable(level)) for level in networks.LEVELS} == {7}
    low, high = (torch.tensor(bound).view(3, 1, 1) for bound in (SPACE.low, SPACE.high))
    noise = [
        lambda x, *, index, level=level: fastxai.data.noisy(x, level, low=SPACE.low, high=SPACE.high, index=index)
        for level in networks.LEVELS
    ]
    stable = evaluation.stability(fastxai.Gradient(net), x.clamp(low, high), noise)
    for level, one in zip(networks.LEVELS, stable, strict=True):
        torch.testing.assert_close(torch.from_numpy(found.stable(level)).float(), one.similarity.pcc)


def test_every_experiment_has_its_rows(whole: Path) -> None:
    found = {(row.experiment, row.key["model"]) for row in rows(whole)}
    names = studies.load("robustness").experiments.keys()
    assert found == {(name, PLAIN) for name in names - {"sampling"}} | {(name, ROBUST) for name in names - {"drop"}}
    assert {row.key["noise"] for row in rows(whole, experiment="noise_kinds")} == {"laplace", "salt_and_pepper"}


def test_sampled_norms_stand_beside_the_exact_one(whole: Path) -> None:
    model = train.network({"network": "evaluation.small:small_net", "activation": "softplus", "beta": 10.0}, 0)
    model.load_state_dict(load_file(whole / "models" / f"{ROBUST}.safetensors"))
    x = SPACE.enter(data().images[:7].float() / 255)
    low, high = (torch.tensor(bound).view(3, 1, 1) for bound in (SPACE.low, SPACE.high))
    found = networks.Network(ROBUST, rows(whole, experiment="train")[0], rows(whole, model=ROBUST))
    for probes in (0, 1, 50):
        norms = evaluation.hessian_norms(fastxai.compile(model), x.clamp(low, high), probes=probes or None)
        measured = torch.from_numpy(found.over_images("sampling", "normalised", probes=probes))
        torch.testing.assert_close(measured.float(), norms, rtol=1e-4, atol=0)


def test_pictures_are_of_the_noise_that_is_measured(whole: Path) -> None:
    for name in (PLAIN, ROBUST):
        pictures = rows(whole, experiment="pictures", model=name)
        measured = networks.Network(name, rows(whole, experiment="train")[0], rows(whole, model=name)).stable(0.025)
        seen = [row for row in pictures for _ in range(*row.key["images"])]
        assert len(seen) == 3
        tensors = ResultStore(whole / "rows").tensors(pictures[0])
        assert tensors["images"].shape[1:] == (5, *data().images.shape[1:])
        torch.testing.assert_close(tensors["images"][:, 0], data().images[: len(tensors["images"])].float() / 255)
        assert [alike[0] for alike in pictures[0].values["pcc"]] == pytest.approx(measured[: len(tensors["images"])])
        assert len({tuple(version.flatten().tolist()) for version in tensors["images"][0]}) == 5
    text = (whole / "report.html").read_text()
    section = text[text.index('<section id="noisy_maps">') :]
    assert section[: section.index("</section>")].count("<img") == 3


@pytest.mark.usefixtures("unreported")
def test_an_interrupted_run_goes_on_to_the_same_rows(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after a few rows, then within the training of the second network."""
    with interrupted(_networks, 3):
        assert main(f"{BOTH} --out again".split()) == 130
    assert f"3 of {len(rows(whole))} rows are in again/rows; the same command goes on" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(train, "accuracy", _interrupt)
        assert main(f"{BOTH} --out again".split()) == 130
    assert (here / "again" / "models" / f"{PLAIN}.safetensors").is_file()
    assert not (here / "again" / "models" / f"{ROBUST}.safetensors").exists()
    before = {file: file.stat().st_mtime_ns for file in (here / "again" / "rows").glob("*.json")}
    assert main(f"{BOTH} --out again".split()) == 0
    assert texts("again") == texts(whole)
    assert all(file.stat().st_mtime_ns == time for file, time in before.items()), "finished rows are not made again"


def _interrupt(*_: Any, **__: Any) -> float:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("unreported")
def test_a_stopped_training_goes_on_from_its_checkpoint(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = FEW.replace("--epochs 1", "--epochs 2")
    assert main(f"{two} --out straight".split()) == 0
    calls = 0
    real = train.accuracy

    def second_stops(*arguments: Any, **options: Any) -> float:
        nonlocal calls
        calls += 1
        return _interrupt() if calls == 2 else real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "accuracy", second_stops)
        assert main(f"{two} --out stopped".split()) == 130
    assert (here / "stopped" / "training" / PLAIN / "checkpoint.json").is_file()
    assert main(f"{two} --out stopped".split()) == 0
    assert not (here / "stopped" / "training" / PLAIN).exists()
    name = f"models/{PLAIN}.safetensors"
    first, second = (load_file(here / place / name) for place in ("straight", "stopped"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("unreported")
def test_a_network_that_lies_there_is_loaded(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "models", here / "brought" / "models")
    monkeypatch.setattr(train, "trained", _interrupt)
    assert main(f"{FEW} --out brought".split()) == 0
    [row] = rows("brought", experiment="train")
    assert row == rows(whole, experiment="train", model=PLAIN)[0]
    shutil.copytree(whole / "models", here / "other" / "models")
    assert main(f"{FEW} --set fit.lr=0.5 --out other".split()) == 2
    assert "was made with fit.lr 0.05, this run has 0.5; choose another folder" in capsys.readouterr().err
    foreign = here / "foreign" / "models" / f"{PLAIN}.safetensors"
    foreign.parent.mkdir(parents=True)
    save_file(small_net().state_dict(), foreign)
    assert main(f"{FEW} --out foreign".split()) == 2
    assert "must be a network that this study trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--out x", "--data KIND:FOLDER is needed"),
        ("--data npz:none.npz --out x", "none.npz"),
        (f"{QUICK} --networks none --out x", f"--networks must match names such as {PLAIN}"),
        (f"{QUICK} --only growth --out x", "--only must be one of train accuracy"),
        (f"{QUICK} --methods pattern_attribution --out x", "--methods must be all or some of gradient"),
        (f"{QUICK} --set fit.speed=3 --out x", "[fit] must be one of"),
        (f"{QUICK} --set fits.lr=3 --out x", "[fits] must be one of [data] [model] [terms] [fit]"),
        (f"{QUICK} --epochs 0 --out x", "--epochs must be at least 1, got 0"),
        (f"{QUICK} --steps 3 --out x", "--steps does not go with robustness"),
        (f"{QUICK} --pretrained --out x", "--pretrained does not go with robustness"),
        (f"{FEW} --seed 1 --out whole", "made with"),
        (f"{FEW} --set fit.lr=0.1 --out whole", "made with fit.lr 0.05, this run has 0.1"),
        ("--report-only --out nothing-there", "there are no rows of robustness"),
    ],
)
def test_errors_name_the_option(
    here: Path, whole: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words.removeprefix("study robustness ")
    assert main(["study", "robustness", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_options_of_networks_do_not_go_with_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "geometry", "--images", "photos", "--epochs", "3", "--out", "x"]) == 2
    assert "--epochs does not go with geometry" in capsys.readouterr().err


def test_the_page_holds_both_tables_beside_the_papers(here: Path, whole: Path) -> None:
    text = (whole / "report.html").read_text()
    for section in studies.load("robustness").sections:
        assert f'<section id="{section}">' in text
    assert "(85.75)" in text and "(30.79)" in text and "(88.24)" in text and "[R] table 2" in text
    assert "0.32 \N{PLUS-MINUS SIGN} 0.12" in text and "0.98 \N{PLUS-MINUS SIGN} 0.01" in text
    for deviation in ("epochs 1,", "batch 4,", "schedule one_cycle", "measured on 7 test images", "at most 200 epochs"):
        assert deviation in text
    assert "noise of two networks that differ in one setting." in text, (
        "two networks that differ in three settings are no course"
    )


def test_courses_vary_one_setting(here: Path, whole: Path, tmp_path: Path) -> None:
    """Rows as of ten networks: every section has something to show."""
    store, made = ResultStore(tmp_path), rows(whole)
    for network in studies.load("robustness").networks:
        if not studies.chosen([network], ("wd*_relu_*", "wd5e-4_beta*_hess0", "wd5e-4_beta10_*")):
            continue
        source = PLAIN if "relu" in network.name else ROBUST
        settings = {f"{table}.{key}": v for table, entries in network.settings.items() for key, v in entries.items()}
        for row in made:
            if row.key["model"] == source:
                config = {**row.config, "settings": {**row.config["settings"], **settings}}
                key = {**row.key, "model": network.name}
                store.write(replace(row, key=key, config=config))
    shown = findings(tmp_path, "robustness")
    found = networks.networks(shown)
    courses = networks.courses(found)
    assert [course.labels for course in courses] == [
        ["0", "5e-5", "5e-4", "0.005", "0.01"],
        ["ReLU", "10", "5", "1", "0.5"],
        ["0", "1e-7", "1e-6", "1e-5", "1e-4", "0.001", "0.01"],
    ]
    sections = report.build_sections(shown, studies.load("robustness").sections)
    assert drawn(sections) == {
        "networks_table": [],
        "maps_table": [],
        "defences": [4, 4, 4],
        "other_maps": [3, 3, 3, 3],
        "other_noise": [3, 3],
        "accuracy_drop": [5],
        "norms": [2, 3],
        "trade_off": [3],
        "sampling": [10],
        "noisy_maps": [],
    }
    [table] = [block for block in sections["networks_table"].blocks if isinstance(block, report.Table)]
    assert len(table.rows) == len(found) == 15 and "mean ||H||, [0, 1]" in table.head


# [R] table 2: accuracy, PCC at nu = 0.005, 0.01, 0.025, mean ||W||, mean ||H||.
PAPER = {
    "wd0_relu_hess0": [85.75, 0.73, 0.57, 0.32, 30.79, math.nan],
    "wd5e-4_relu_hess0": [88.63, 0.84, 0.70, 0.45, 11.37, math.nan],
    "wd0_beta10_hess0": [85.61, 0.81, 0.63, 0.34, 30.01, 503.61],
    "wd5e-4_beta10_hess0": [88.84, 0.88, 0.75, 0.49, 11.24, 91.68],
    "wd5e-4_beta1_hess0": [86.80, 0.93, 0.86, 0.63, 11.93, 28.45],
    "wd5e-4_beta10_hess1e-6": [88.24, math.nan, math.nan, 0.73, math.nan, 17.68],
    "wd5e-4_beta10_hess1e-4": [86.54, 0.98, 0.96, 0.88, 9.20, 3.08],
}
# [R] table 1.
MAPS = {
    "wd0_relu_hess0": [(0.32, 0.12), (0.44, 0.13), (0.53, 0.12), (0.78, 0.10), (0.91, 0.06)],
    "wd5e-4_beta10_hess1e-6": [(0.73, 0.08), (0.76, 0.08), (0.82, 0.06), (0.94, 0.03), (0.98, 0.01)],
}


def test_the_papers_numbers(tmp_path: Path) -> None:
    paper = report.Findings(ResultStore(tmp_path), "robustness", {}).paper
    known = {network.name for network in studies.load("robustness").networks}
    found = paper["networks"]["rows"]
    assert found.keys() <= known and all(len(row) == 6 for row in found.values())
    for name, row in PAPER.items():
        assert found[name] == pytest.approx(row, nan_ok=True)
    for row in found.values():
        accuracy, *similar, weight, hessian = row
        assert 60 < accuracy < 90 and not (weight <= 0 or hessian <= 0)
        kept = [value for value in similar if not math.isnan(value)]
        assert kept == sorted(kept, reverse=True) and all(0 < value < 1 for value in kept)
    for name, row in MAPS.items():
        assert [tuple(value) for value in paper["maps"][name].values()] == row
        assert paper["maps"][name]["gradient"][0] == found[name][3]
