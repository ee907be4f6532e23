"""Compare learners, baselines and encoders on the same queries, with tests of significance.

`python runners/compare.py` runs every method on pydocs with three seeds. Finished methods stay in
the folder of the comparison: `--resume FOLDER` goes on where it was stopped.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from maw_gym.errors import InputError
from maw_gym.runners.experiments.command_line import Flag, Section
from maw_gym.runners.experiments.runs import open_run, run_main, write_config
from maw_gym.runners.experiments.settings import (
    OnlineSettings,
    RunSettings,
    Spec,
    TaskSettings,
    check_different,
)
from maw_gym.settings import Count, HomeText, Seed, checked

if TYPE_CHECKING:
    from maw_gym.runners.experiments.analysis import Comparison

QUICK_TIMESTEPS: Final = 8_000
QUICK_BASELINE: Final = "standard-attention"
BASELINE: Final = "non-maw-trained"
SINGLE: Final = "maw-single"  # one depth, trained as the depths are: the fair control of routing
NOT_OF_THE_VERDICT: Final = ("non-maw-trained", "rule-constant", "supervised-oracle", "ppo")


@checked
class CompareSettings:
    """Which methods meet on which datasets; None is filled in as documented."""

    main_flags: ClassVar = (
        *("datasets", "methods", "seeds", "text_encoder"),
        *("verdict", "quick", "device", "resume"),
    )

    datasets: Annotated[tuple[HomeText, ...], Field(min_length=1), Flag("dataset")] = ("pydocs",)
    """ir_datasets ids (pydocs, beir/scifact, cranfield, ...) or folders in BEIR's layout"""
    methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """methods by name, or own learners as module:name; all unless given (--quick: some of
    each kind)"""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """of the learners; 0 1 2 unless given (--quick: 0)"""
    encoder_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """an encoder is trained with each of them, and all methods run on each encoder; that of
    --encoder-seed alone unless given (--verdict: 0 1 2)"""
    timesteps: Count | None = None
    """training queries that each learner sees; as train_grpo.py (--quick: 8000)"""
    baseline: str | None = None
    """what all are tested against; non-maw-trained (--quick: standard-attention)"""
    seed_intervals: bool = False
    """also give 95% intervals over seeds (Student's t); needs two seeds or more"""
    jobs: Count = 1
    """folds and encoders that are worked on at once, each in a process of its own with its share of
    the cores and, where there are several, of the GPUs"""
    task: Annotated[TaskSettings, Section(without=("dataset", "fold", "seed"))] = TaskSettings()
    run: RunSettings = RunSettings()
    verdict: bool = False
    """the study of docs/results.md: does choosing help? Folds, several encoders, fair controls"""
    quick: bool = False
    """one seed, fewer methods and timesteps, no encoder trained but the MAW encoder, short TREC
    runs"""

    @property
    def tested_against(self) -> str:
        """Name of the baseline."""
        ordinary = SINGLE if self.verdict else QUICK_BASELINE if self.quick else BASELINE
        return self.baseline or ordinary

    @property
    def method_names(self) -> tuple[str, ...]:
        """All methods to run, as they are given, the baseline among them."""
        # Late, here and below: a help that shows the settings need not wait for all methods.
        from maw_gym.runners.experiments.methods import METHODS

        if self.methods is not None:
            every = METHODS if "all" in self.methods else ()
            names = [*every, *(name for name in self.methods if name != "all")]
        else:
            without = NOT_OF_THE_VERDICT if self.verdict else ()
            names = [name for name, method in METHODS.items() if not (self.quick and method.slow)]
            names = [name for name in names if name not in without]
        return (*names, *({self.tested_against} - {*names}))

    @property
    def seeds_of_encoders(self) -> tuple[int, ...]:
        """Seeds of the encoders."""
        return self.encoder_seeds or ((0, 1, 2) if self.verdict else (self.task.encoder_seed,))

    @property
    def fold_count(self) -> int | None:
        """Into how many folds all queries are cut; None where each dataset decides."""
        return self.task.folds or (5 if self.verdict else None)

    @property
    def learner_seeds(self) -> tuple[int, ...]:
        """Seeds of the learners; of the study one with each encoder, which has a seed itself."""
        return self.seeds or ((0,) if self.quick or self.verdict else (0, 1, 2))

    def specs(self, dataset: str, folds: tuple[int, ...] = (0,)) -> list[Spec]:
        """What the methods' specifications are made of, for all folds encoder by encoder."""
        timesteps = self.timesteps or (QUICK_TIMESTEPS if self.quick else OnlineSettings.timesteps)
        task = replace(self.task, dataset=dataset, folds=self.fold_count)
        return [
            Spec(replace(task, encoder_seed=seed, fold=fold), OnlineSettings(timesteps))
            for seed in self.seeds_of_encoders
            for fold in folds
        ]

    @model_validator(mode="after")
    def _fit_the_comparison(self) -> Self:
        from maw_gym.runners.experiments.methods import chosen_methods

        check_different(self, "datasets", "seeds", "encoder_seeds")
        if self.quick and self.verdict:
            raise InputError("quick and verdict exclude each other; leave one of them out")
        if self.task.encoder != "trained" and len(self.seeds_of_encoders) > 1:
            raise InputError(
                f"encoder {self.task.encoder!r} is one encoder, but encoder_seeds are"
                f" {' '.join(map(str, self.seeds_of_encoders))}; give --encoder-seeds 0"
            )
        if chosen_methods(self.method_names)[self.tested_against].kind == "oracle":
            raise InputError(f"the baseline cannot be {self.baseline!r}, which reads the answers")
        if self.seed_intervals and len(self.learner_seeds) < 2:
            raise InputError(
                f"an interval over seeds needs two seeds or more, got {len(self.learner_seeds)};"
                " give --seeds 0 1 2 or leave --seed-intervals out"
            )
        return self


def compare_dataset(
    settings: CompareSettings, dataset: str, folds: tuple[int, ...], folder: Path
) -> "Comparison":
    """Every method on one dataset, over all its folds and with every encoder."""
    from maw_gym.runners.experiments import comparison

    specs = settings.specs(dataset, folds)
    run = partial(
        comparison.compare,
        settings.method_names,
        seeds=settings.learner_seeds,
        baseline=settings.tested_against,
        folder=folder,
        ranked=10 if settings.quick else 100,
        seed_intervals=settings.seed_intervals,
    )
    if settings.jobs > 1 and len(specs) > 1:
        calls = [(run, spec, specs) for spec in specs]
        comparison.run_side_by_side(comparison.run_fold, calls, min(settings.jobs, len(calls)))
    return run([comparison.open_fold(spec, specs) for spec in specs])


def main(settings: CompareSettings) -> None:
    """Run what is not there yet, then write the report from everything."""
    from maw_gym.encoders.text import text_encoders
    from maw_gym.runners.experiments.comparison import checked_folds
    from maw_gym.runners.experiments.comparison_report import (
        DIFFERENCE,
        method_table,
        reading,
        write_comparisons,
    )
    from maw_gym.tables.task import load_task, resolve_device

    task, start = settings.task, time.perf_counter()
    resolve_device(task.device)
    folds = {dataset: checked_folds(dataset, settings.fold_count) for dataset in settings.datasets}
    # What is cheap to open is opened before anything is written.
    text_encoders(task.text_encoder)
    if task.encoder != "trained":
        load_task(settings.datasets[0], task.encoder, task.device, text_encoder=task.text_encoder)
    folder = open_run(settings, f"compare-{'-'.join(settings.datasets)}")
    provenance = {dataset: found for dataset, (_, found) in folds.items()}
    write_config(folder, "comparison", settings, provenance, {"encoder": task.encoder})
    made = [
        compare_dataset(settings, dataset, numbers, folder)
        for dataset, (numbers, _) in folds.items()
    ]
    write_comparisons(made, folder, "compare", settings.quick)
    for one in made:
        print(f"\n{one.dataset}\n\n{method_table(one, DIFFERENCE)}\n")
        print("\n".join(f"- {sentence}" for sentence in reading(one)))
    print(f"\n{time.perf_counter() - start:.0f} s; report: {folder / 'report.md'}")


if __name__ == "__main__":
    run_main(CompareSettings, main)
