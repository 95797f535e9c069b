"""Repeat a paper's study, row by row, and write its report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastxai import report, studies
from fastxai.cli import _common, _networks, _networks_asked, _rows, _study, _study_asked
from fastxai.cli._common import Stopped, UsageError
from fastxai.cli._errors import naming
from fastxai.results import ResultStore
from fastxai.studies import Study

__all__ = ["add_arguments", "run"]

PAGE = "report.html"
# What each kind of study has: what makes its rows, and the options that this kind alone has.
KINDS = {
    "pairs": (_study, ("images", "pairs", "steps", "preset", "patterns", "weights", "pretrained", "size")),
    "networks": (_networks, ("data", "networks", "epochs", "samples", "set")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("study", choices=studies.names(), help="which study")
    parser.add_argument(
        "--images", default="", metavar="DIR", help="a folder of photos, or cifar10:FOLDER for its test images"
    )
    parser.add_argument("--pairs", type=int, help="pairs of images (default: the study's)")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD", help="maps by name (default: all)")
    parser.add_argument(
        "--only", action="append", metavar="EXPERIMENT", help="run this experiment alone; repeat for several"
    )
    parser.add_argument("--steps", type=int, help="iterations of every attack, for a quick look (default: the paper's)")
    parser.add_argument("--batch", type=int, help="pairs a row, computed together (default: the study's)")
    parser.add_argument(
        "--preset",
        metavar="DATA[:NETWORK]",
        help="settings of the attacks: imagenet, cifar10 or such as imagenet:resnet18 (default: by --images)",
    )
    parser.add_argument("--patterns", type=Path, metavar="FILE", help="patterns of the model, for pattern_attribution")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="KIND:FOLDER",
        help="images with labels to train on, such as cifar10:FOLDER; NAME=KIND:FOLDER for each data set of a study "
        "that has several",
    )
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="networks by name, * for any (default: all)")
    parser.add_argument("--epochs", type=int, help="passes over the data, for a quick look (default: the paper's)")
    parser.add_argument("--samples", type=int, help="measure on so many test images at most (default: the study's)")
    parser.add_argument("--set", action="append", metavar="TABLE.KEY=VALUE", help="change a setting of the training")
    parser.add_argument("--report-only", action="store_true", help="write the report of the rows that there are")
    _common.add_model(parser)
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda:0 (default: cpu)")
    parser.add_argument("--seed", type=int, help="seed of every random number (default: the study's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the rows and the report")


def run(options: argparse.Namespace) -> None:
    """Make the rows that are missing, then the report."""
    study = studies.load(options.study)
    _check(options, study)
    store = ResultStore(options.out / "rows")
    if not options.report_only:
        _make(options, study, store)
    _report(options, study, store)


def _check(options: argparse.Namespace, study: Study) -> None:
    """Fill in the study's defaults; UsageError names what is wrong."""
    for kind, (_, own) in KINDS.items():
        given = [name for name in own if kind != study.kind and getattr(options, name) not in (None, "", False)]
        if given:
            raise UsageError(f"--{given[0]} does not go with {study.name}")
    for name, value in study.defaults.items():
        if getattr(options, name, value) is None:
            setattr(options, name, value)
    for name in ("pairs", "batch", "steps", "epochs", "samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    unknown = [name for name in options.only or () if name not in study.experiments]
    if unknown:
        raise UsageError(f"--only must be one of {' '.join(study.experiments)}, got {unknown[0]}")
    {"pairs": _study_asked.methods, "networks": _networks_asked.methods}[study.kind](options, study)
    needed, what = {"pairs": ("images", "DIR"), "networks": ("data", "KIND:FOLDER")}[study.kind]
    if not (getattr(options, needed) or options.report_only):
        raise UsageError(f"--{needed} {what} is needed, unless --report-only is given")


def _make(options: argparse.Namespace, study: Study, store: ResultStore) -> None:
    rows = _rows.found(options, store)
    runner: Any = KINDS[study.kind][0]
    bench = runner.bench(options, study)
    jobs, there = runner.jobs(options, bench, rows)
    total, made = there + sum(job.rows for job in jobs), 0
    try:
        with tqdm(total=total, initial=there, unit="row", disable=None) as bar:
            for job in jobs:
                bar.set_description(job.label)
                with naming(job.label, store.folder):
                    runner.run(store, bench, job)
                made += job.rows
                bar.update(job.rows)
    except OSError as error:
        raise UsageError(f"--out {options.out}: {error}") from error
    except KeyboardInterrupt as error:
        raise Stopped(
            f"stopped: {there + made} of {total} rows are in {store.folder}; the same command goes on"
        ) from error


def _report(options: argparse.Namespace, study: Study, store: ResultStore) -> None:
    titles = {name: str(table["title"]) for name, table in study.methods.items()}
    try:
        findings = report.Findings(store, study.name, titles)
        if not findings.rows:
            raise UsageError(f"--out {options.out}: there are no rows of {study.name}")
        sections = report.build_sections(findings, study.sections)
    except ValueError as error:
        raise UsageError(f"--out {options.out}: {error}") from error
    try:
        file = report.write(options.out / PAGE, report.page(study.title, study.source, sections))
    except OSError as error:
        raise UsageError(f"--out {options.out}: {error}") from error
    tables = [block for block in sections[study.sections[0]].blocks if isinstance(block, report.Table)]
    printed = [_common.table(table.head, table.rows) for table in tables]
    result: dict[str, Any] = {
        "command": "study",
        "study": study.name,
        "rows": {name: len(findings.rows_of(name)) for name in study.experiments},
        "summary": [[dict(zip(table.head, row, strict=True)) for row in table.rows] for table in tables],
        "written": [str(file)],
    }
    _common.show(options, result, "\n\n".join([*printed, _common.written([file])]))
