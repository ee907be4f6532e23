"""A comparison: every method with every seed on every fold of every dataset."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from maw_gym.files import write_json, written_whole
from maw_gym.tables.task import RetrievalTask
from runners.experiments.analysis import Results, rows_of
from runners.experiments.command_line import command_of
from runners.experiments.comparison_figures import draw_all
from runners.experiments.comparison_settings import CompareSettings
from runners.experiments.engine import kept_run
from runners.experiments.fields import Field, Reference, reference
from runners.experiments.methods import METHODS
from runners.experiments.results import Result, slug
from runners.experiments.settings import OnlineSettings
from runners.experiments.side_by_side import run_side_by_side
from runners.experiments.training import task_of
from runners.experiments.writing import Outcome, join_runs, report_text, write_per_query


class Fold(NamedTuple):
    """One fold, ready to run methods on."""

    task: RetrievalTask
    settings: OnlineSettings
    reference: Reference


def run_dataset(field: Field, settings: CompareSettings, folder: Path) -> Outcome:
    """Every method on one dataset, over all its folds, with every encoder."""
    pairs = list(itertools.product(settings.seeds_of_encoders, field.folds))
    if settings.jobs > 1 and len(pairs) > 1:
        calls = [(field, settings, folder, seed, fold) for seed, fold in pairs]
        run_side_by_side(run_fold, calls, min(settings.jobs, len(calls)))
    encoders = [
        [open_fold(field, settings, fold, seed) for fold in field.folds]
        for seed in settings.seeds_of_encoders
    ]
    results, skipped = [], {}
    for name in settings.method_names:
        reasons = [METHODS[name].lacks(fold.task) for folds in encoders for fold in folds]
        reason = next(filter(None, reasons), None)
        if reason:
            skipped[name] = reason
        else:
            results.append(run_method(field, encoders, settings, name, folder))
    every = [fold.reference for folds in encoders for fold in folds]
    rows = rows_of(field.dataset, results, every, settings.tested_against, settings.seed_intervals)
    return Outcome(field, every[: len(field.folds)], results, rows, skipped)


def run_fold(
    field: Field, settings: CompareSettings, folder: Path, encoder_seed: int, fold: int
) -> None:
    """Every method that can run on one fold with one encoder; the results stay in the folder."""
    opened = open_fold(field, settings, fold, encoder_seed)
    for name in settings.method_names:
        if METHODS[name].lacks(opened.task) is None:
            for seed in seeds_of(name, settings):
                run_cell(field, settings, name, opened, seed, folder)


def open_fold(field: Field, settings: CompareSettings, fold: int, encoder_seed: int) -> Fold:
    """The task of a fold with its tables, and what its results are seen against."""
    where = f", fold {fold}" if len(field.folds) > 1 else ""
    where += f", encoder {encoder_seed}" if len(settings.seeds_of_encoders) > 1 else ""
    print(f"{field.dataset}{where}: encoder and depth tables ...", file=sys.stderr, flush=True)
    common = settings.common(field.dataset, fold, encoder_seed)
    task = task_of(common)
    return Fold(task, common, reference(task, common))


def run_method(
    field: Field,
    encoders: Sequence[Sequence[Fold]],
    settings: CompareSettings,
    name: str,
    folder: Path,
) -> Results:
    """One method with all its seeds on all encoders in all folds; what is there is read."""
    seeds = seeds_of(name, settings)
    rows = []
    for folds, seed in itertools.product(encoders, seeds):
        cells = [run_cell(field, settings, name, fold, seed, folder) for fold in folds]
        rows.append(tuple(result for result, _ in cells))
        if len(folds) > 1:
            label = label_of(field, settings, name, folds[0], seed)
            join_runs([run for _, run in cells], folder / "runs" / f"{label}.trec.gz")
    return Results(name, seeds, tuple(rows), len(encoders))


def run_cell(
    field: Field, settings: CompareSettings, name: str, fold: Fold, seed: int, folder: Path
) -> tuple[Result, Path]:
    """One method with one seed on one fold, and its TREC run file; what is there is read."""
    label = label_of(field, settings, name, fold, seed)
    run = folder / "runs" / f"{label}.trec"
    if len(field.folds) > 1:
        label += f".fold{fold.settings.fold}"
        run = folder / "cells" / f"{label}.trec.gz"
    spec = METHODS[name].specify(replace(fold.settings, seed=seed), fold.task)
    return kept_run(name, fold.task, spec, folder, label, run), run


def label_of(field: Field, settings: CompareSettings, name: str, fold: Fold, seed: int) -> str:
    """What the files of a method are called, whatever the fold."""
    label = f"{slug(field.dataset)}.{name}"
    if len(settings.seeds_of_encoders) > 1:
        label += f".encoder{fold.settings.encoder_seed}"
    return f"{label}.seed{seed}" if METHODS[name].seeded else label


def seeds_of(name: str, settings: CompareSettings) -> tuple[int, ...]:
    """Seeds that a method runs with."""
    return settings.learner_seeds if METHODS[name].seeded else (0,)


def write_all(outcomes: Sequence[Outcome], settings: CompareSettings, folder: Path) -> None:
    """Write results.json, per_query.csv, the figures and, last, report.md."""
    write_json(folder / "results.json", [row for outcome in outcomes for row in outcome.rows])
    write_per_query(folder / "per_query.csv", outcomes)
    for outcome in outcomes:
        draw_all(outcome, settings.tested_against, folder / "figures")
    text = report_text(outcomes, settings, command_of("compare", settings))
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
