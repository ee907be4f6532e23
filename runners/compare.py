"""Compare learners, baselines and encoders on the same queries, with tests of significance.

`python runners/compare.py` runs every method on pydocs with three seeds. Finished methods are kept
in the folder of the comparison: `--resume FOLDER` goes on where it was stopped.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maw_gym.files.cache import content_key, written_whole
from maw_gym.files.tensor_files import fingerprint
from maw_gym.tables.task import RetrievalTask, load_task, resolve_device
from runners.experiments import tables
from runners.experiments.analysis import Results, rows_of
from runners.experiments.cells import Cell, Reference, kept_cell, slug
from runners.experiments.comparison_settings import CompareSettings
from runners.experiments.fields import Field, blocks_of, checked_field, reference
from runners.experiments.methods import METHODS
from runners.experiments.pictures import draw_all
from runners.experiments.running import Place, compute
from runners.experiments.runs import new_run, run_main, write_config, write_json
from runners.experiments.settings import OnlineSettings
from runners.experiments.writing import (
    Outcome,
    join_runs,
    reading,
    report_text,
    write_per_query,
)

FORMAT = 1  # raise when what a cell holds changes


class Fold(NamedTuple):
    """One fold, ready to run methods on."""

    task: RetrievalTask
    settings: OnlineSettings
    reference: Reference


def main(told: CompareSettings) -> None:
    """Run what is not there yet, then write the report from everything."""
    settings = told.filled()
    settings.check()
    resolve_device(settings.device)
    fields = [checked_field(dataset) for dataset in settings.datasets]
    if settings.encoder != "trained":  # what is cheap to open is opened before anything is written
        load_task(settings.datasets[0], settings.encoder, settings.device)
    name = f"compare-{'-'.join(settings.datasets)}"
    folder = new_run(settings.logdir, settings.run_name, name, settings.resume)
    provenance = {field.dataset: field.provenance for field in fields}
    write_config(folder, "comparison", told, provenance, {"told": settings.encoder})
    start = time.perf_counter()
    outcomes = [run_dataset(field, settings, folder) for field in fields]
    write_all(outcomes, settings, folder)
    assert settings.baseline is not None
    for outcome in outcomes:
        print(f"\n{outcome.field.dataset}\n")
        print(tables.test_table(outcome.rows, settings.baseline), end="\n\n")
        for sentence in reading(outcome, settings.baseline):
            print(f"- {sentence}")
    print(f"\n{time.perf_counter() - start:.0f} s; report: {folder / 'report.md'}")


def write_all(outcomes: Sequence[Outcome], settings: CompareSettings, folder: Path) -> None:
    """Write results.json, per_query.csv, the pictures and, last, report.md."""
    assert settings.baseline is not None
    write_json(folder / "results.json", [row for outcome in outcomes for row in outcome.rows])
    write_per_query(folder / "per_query.csv", outcomes)
    for outcome in outcomes:
        draw_all(outcome, settings.baseline, folder / "figures")
    with written_whole(folder / "report.md") as temporary:
        text = report_text(outcomes, settings, command_of(settings))
        temporary.write_text(text, encoding="utf-8")


def run_dataset(field: Field, settings: CompareSettings, folder: Path) -> Outcome:
    """Every method on one dataset, over all its folds."""
    assert settings.methods is not None
    assert settings.baseline is not None
    folds = [open_fold(field, settings, fold) for fold in field.folds]
    skipped: dict[str, str] = {}
    if any(len(one.task.embedder.maw.centroids) != _depths(one.task) for one in folds):
        skipped = dict.fromkeys(
            {"cluster"} & set(settings.methods), "the encoder has not one centroid per depth"
        )
    results = []
    for method in settings.methods:
        if method not in skipped:
            results.append(run_method(field, folds, settings, method, folder))
    references = [one.reference for one in folds]
    rows = rows_of(field.dataset, results, references, settings.baseline, settings.seed_intervals)
    return Outcome(field, references, results, rows, skipped)


def open_fold(field: Field, settings: CompareSettings, fold: int) -> Fold:
    """The task of a fold with its tables, and what its results are seen against."""
    where = f", fold {fold}" if len(field.folds) > 1 else ""
    _say(f"{field.dataset}{where}: encoder and depth tables")
    common = settings.common(field.dataset, fold=fold)
    task = load_task(common.dataset, common.encoder, common.device, fold)
    common = replace(common, observation=blocks_of(task, common.observation))
    return Fold(task, common, reference(task, common))


def run_method(
    field: Field, folds: Sequence[Fold], settings: CompareSettings, method: str, folder: Path
) -> Results:
    """One method with all its seeds in all folds; what is there already is read."""
    assert settings.seeds is not None
    seeds = settings.seeds if METHODS[method].seeded else (0,)
    rows = []
    for seed in seeds:
        name = f"{slug(field.dataset)}.{method}"
        if METHODS[method].seeded:
            name += f".seed{seed}"
        whole = folder / "runs" / f"{name}.trec"
        row, parts = [], []
        for fold in folds:
            part = name if len(folds) == 1 else f"{name}.fold{fold.settings.fold}"
            parts.append(whole if len(folds) == 1 else folder / "cells" / f"{part}.trec")
            row.append(run_cell(fold, method, seed, folder, part, parts[-1]))
        if len(folds) > 1:
            join_runs(parts, whole)
        rows.append(tuple(row))
    return Results(method, tuple(seeds), tuple(rows))


def run_cell(fold: Fold, method: str, seed: int, folder: Path, name: str, trec: Path) -> Cell:
    """One cell, computed unless it is there for these very settings, data and encoder."""
    settings = replace(fold.settings, seed=seed)
    key = content_key(
        {
            "format": FORMAT,
            "method": method,
            "content": fold.task.collection.provenance["content"],
            "encoder": fingerprint(fold.task.embedder.tensors()),
            "settings": {
                name: getattr(settings, name)
                for name in (
                    "seed",
                    "timesteps",
                    "observation",
                    "network",
                    "alignment",
                    "reward_weights",
                )
            },
            "device": fold.task.device.type,
        }
    )
    path = folder / "cells" / f"{name}.{key}.json"
    if not trec.exists():
        path.unlink(missing_ok=True)  # its ranking belongs to it

    def computed() -> Cell:
        _say(name)
        place = Place(folder / "training" / name, trec)
        return compute(fold.task, settings, method, place)

    return kept_cell(path, computed)


def command_of(settings: CompareSettings) -> str:
    """The command that makes this comparison, without what is said by default."""
    ordinary = CompareSettings(quick=settings.quick).filled().to_json()

    def words() -> Iterator[str]:
        for name, value in settings.to_json().items():
            if name == "quick":
                yield from ["--quick"] if value else []
            elif value != ordinary[name]:
                yield f"--{name.replace('_', '-')}"
                if value is not True:
                    values: list[Any] = value if isinstance(value, list) else [value]
                    yield from map(str, values)

    return " ".join(["python runners/compare.py", *words()])


def _depths(task: RetrievalTask) -> int:
    return task.embedder.maw.depths


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_main(CompareSettings, main)
