"""A comparison: every method with every seed on every fold of every dataset."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from maw_gym.files.cache import written_whole
from maw_gym.tables.task import RetrievalTask
from runners.experiments.analysis import Results, rows_of
from runners.experiments.command_line import command_of
from runners.experiments.comparison_figures import draw_all
from runners.experiments.comparison_settings import CompareSettings
from runners.experiments.engine import kept_run
from runners.experiments.fields import Field, Reference, blocks_of, reference
from runners.experiments.methods import METHODS
from runners.experiments.results import slug
from runners.experiments.runs import write_json
from runners.experiments.settings import OnlineSettings
from runners.experiments.tasks import task_of
from runners.experiments.writing import Outcome, join_runs, report_text, write_per_query


class Fold(NamedTuple):
    """One fold, ready to run methods on."""

    task: RetrievalTask
    settings: OnlineSettings
    reference: Reference


def run_dataset(field: Field, settings: CompareSettings, folder: Path) -> Outcome:
    """Every method on one dataset, over all its folds, with every encoder."""
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
            results.append(run_method(field, encoders, settings.learner_seeds, name, folder))
    every = [fold.reference for folds in encoders for fold in folds]
    rows = rows_of(field.dataset, results, every, settings.tested_against, settings.seed_intervals)
    return Outcome(field, every[: len(field.folds)], results, rows, skipped)


def open_fold(field: Field, settings: CompareSettings, fold: int, encoder_seed: int) -> Fold:
    """The task of a fold with its tables, and what its results are seen against."""
    where = f", fold {fold}" if len(field.folds) > 1 else ""
    where += f", encoder {encoder_seed}" if len(settings.seeds_of_encoders) > 1 else ""
    print(f"{field.dataset}{where}: encoder and depth tables ...", file=sys.stderr, flush=True)
    common = settings.common(field.dataset, fold, encoder_seed)
    task = task_of(common)
    common = replace(common, observation=blocks_of(task, common.observation))
    return Fold(task, common, reference(task, common))


def run_method(
    field: Field, encoders: Sequence[Sequence[Fold]], seeds: Sequence[int], name: str, folder: Path
) -> Results:
    """One method with all its seeds on all encoders in all folds; what is there is read."""
    method = METHODS[name]
    seeds = tuple(seeds) if method.seeded else (0,)
    rows = []
    for folds, seed in itertools.product(encoders, seeds):
        encoder = f".encoder{folds[0].settings.encoder_seed}" if len(encoders) > 1 else ""
        label = f"{slug(field.dataset)}.{name}{encoder}" + (f".seed{seed}" if method.seeded else "")
        whole = folder / "runs" / f"{label}.trec"
        row, parts = [], []
        for fold in folds:
            part = label if len(folds) == 1 else f"{label}.fold{fold.settings.fold}"
            parts.append(whole if len(folds) == 1 else folder / "cells" / f"{part}.trec")
            spec = method.specify(replace(fold.settings, seed=seed), fold.task)
            row.append(kept_run(name, fold.task, spec, folder, part, parts[-1]))
        if len(folds) > 1:
            join_runs(parts, whole)
        rows.append(tuple(row))
    return Results(name, seeds, tuple(rows), len(encoders))


def write_all(outcomes: Sequence[Outcome], settings: CompareSettings, folder: Path) -> None:
    """Write results.json, per_query.csv, the figures and, last, report.md."""
    write_json(folder / "results.json", [row for outcome in outcomes for row in outcome.rows])
    write_per_query(folder / "per_query.csv", outcomes)
    for outcome in outcomes:
        draw_all(outcome, settings.tested_against, folder / "figures")
    text = report_text(outcomes, settings, command_of("compare", settings))
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
