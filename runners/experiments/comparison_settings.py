"""The settings of a comparison, checked before any work starts."""

import os
from dataclasses import fields
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field, model_validator

from maw_gym.errors import InputError
from maw_gym.settings import Count, Folds, HomeText, Seed, checked
from runners.experiments.command_line import Flag
from runners.experiments.settings import (
    EncoderChoice,
    ObservationSettings,
    OnlineSettings,
    RewardSettings,
    RunSettings,
)

QUICK_TIMESTEPS: Final = 40_000
QUICK_BASELINE: Final = "standard-attention"
BASELINE: Final = "non-maw-trained"
SINGLE: Final = "maw-single"  # one depth, trained as the depths are: the fair control of routing
VERDICT: Final = (
    "bm25",
    "mean-pooling",
    "non-maw-zero-shot",
    "standard-attention",
    "maw-single",
    "ensemble",
    "dense-bm25",
    "dense-bm25-rrf",
    "random",
    "best-fixed-reward",
    "best-fixed-ndcg",
    "observed-reward",
    "supervised-rule",
    "full-information",
    "full-ndcg",
    "full-ndcg-retrieval",
    "grpo",
    "grpo-retrieval",
    "oracle",
    "oracle-ndcg",
)


@checked
class CompareSettings(RunSettings, ObservationSettings, RewardSettings, EncoderChoice):
    """Which methods meet on which datasets; None is filled in as documented."""

    main_flags: ClassVar = (
        "datasets",
        "methods",
        "seeds",
        "text_encoder",
        "verdict",
        "quick",
        "device",
        "resume",
    )

    datasets: Annotated[
        tuple[HomeText, ...], Field(min_length=1), Flag("dataset", old=("datasets",))
    ] = ("pydocs",)
    """ir_datasets ids (pydocs, beir/scifact, cranfield, ...) or folders in BEIR's layout"""
    methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """names of methods, or all; all unless given (--quick: those that train no encoder)"""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """of the learners; 0 1 2 unless given (--quick: 0)"""
    encoder_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """an encoder is trained with each of them, and all methods run on each encoder; that of
    --encoder-seed alone unless given (--verdict: 0 1 2)"""
    timesteps: Count | None = None
    """training queries that each learner sees; as train_grpo.py (--quick: 40000)"""
    baseline: str | None = None
    """what all are tested against; non-maw-trained (--quick: standard-attention)"""
    folds: Folds | None = None
    """cut all queries, whatever their subsets, into so many folds and compare on all of them;
    unless given, 5 where there are no subsets and for --verdict"""
    seed_intervals: bool = False
    """also give 95% intervals over seeds (Student's t); needs two seeds or more"""
    jobs: Count = 1
    """folds and encoders that are worked on at once, each in a process of its own with its share of
    the cores and, where there are several, of the GPUs"""
    verdict: bool = False
    """the study of docs/results.md: does choosing help? Folds, several encoders, fair controls"""
    quick: bool = False
    """one seed, fewer timesteps, no encoder trained but the MAW encoder"""

    @property
    def tested_against(self) -> str:
        """Name of the baseline."""
        ordinary = SINGLE if self.verdict else QUICK_BASELINE if self.quick else BASELINE
        return self.baseline or ordinary

    @property
    def method_names(self) -> tuple[str, ...]:
        """All methods to run, the baseline among them, in the order of `METHODS`."""
        # Late, here and below: a help that shows the settings need not wait for all methods.
        from runners.experiments.methods import METHODS

        names = set(self.methods or ())
        if self.verdict and self.methods is None:
            names = set(VERDICT)
        elif self.methods is None:
            left_out = ("dear",) if self.quick else ()
            names = {name for name, method in METHODS.items() if method.cost not in left_out}
        elif self.methods == ("all",):
            names = set(METHODS)
        names.add(self.tested_against)
        return tuple(name for name in METHODS if name in names)

    @property
    def seeds_of_encoders(self) -> tuple[int, ...]:
        """Seeds of the encoders."""
        return self.encoder_seeds or ((0, 1, 2) if self.verdict else (self.encoder_seed,))

    @property
    def fold_count(self) -> int | None:
        """Into how many folds all queries are cut; None where each dataset decides."""
        return self.folds or (5 if self.verdict else None)

    @property
    def learner_seeds(self) -> tuple[int, ...]:
        """Seeds of the learners; of the study one with each encoder, which has a seed itself."""
        return self.seeds or ((0,) if self.quick or self.verdict else (0, 1, 2))

    def common(self, dataset: str, fold: int = 0, encoder_seed: int = 0) -> OnlineSettings:
        """What the methods' specifications are made of."""
        timesteps = QUICK_TIMESTEPS if self.quick else OnlineSettings.timesteps
        # Whatever both have, so that a setting added to both cannot be left behind here.
        names = {one.name for one in fields(OnlineSettings)} & {one.name for one in fields(self)}
        own = {
            "dataset": dataset,
            "encoder_seed": encoder_seed,
            "timesteps": self.timesteps or timesteps,
            "fold": fold,
            "folds": self.fold_count,
        }
        return OnlineSettings(**{name: getattr(self, name) for name in names} | own)

    @model_validator(mode="after")
    def _fit_the_comparison(self) -> Self:
        from runners.experiments.methods import METHODS, check_methods

        for name, given in (
            ("datasets", self.datasets),
            ("seeds", self.seeds or ()),
            ("encoder_seeds", self.encoder_seeds or ()),
        ):
            if len(set(given)) != len(given):
                raise InputError(f"{name} must differ, got {' '.join(map(str, given))}")
        if self.quick and self.verdict:
            raise InputError("quick and verdict exclude each other; leave one of them out")
        if self.encoder != "trained" and len(self.seeds_of_encoders) > 1:
            raise InputError(
                f"encoder {self.encoder!r} is one encoder, but encoder_seeds are"
                f" {' '.join(map(str, self.seeds_of_encoders))}; give --encoder-seeds 0"
            )
        folders = [os.path.realpath(name) for name in self.datasets if os.path.isdir(name)]
        for place in folders:
            if folders.count(place) > 1:
                raise InputError(f"the dataset {place!r} is given twice; leave one out")
        if self.methods not in (None, ("all",)):
            check_methods(self.methods or ())
        check_methods([self.tested_against])
        if METHODS[self.tested_against].kind == "oracle":
            raise InputError(f"the baseline cannot be {self.baseline!r}, which reads the answers")
        if self.seed_intervals and len(self.learner_seeds) < 2:
            raise InputError(
                f"an interval over seeds needs two seeds or more, got {len(self.learner_seeds)};"
                " give --seeds 0 1 2 or leave --seed-intervals out"
            )
        return self
