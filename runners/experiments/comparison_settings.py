"""The settings of a comparison, checked before any work starts."""

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from maw_gym.errors import InputError
from maw_gym.settings import Count, Folds, HomeText, Seed, checked
from runners.experiments.methods import METHODS, check_methods
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


@checked
class CompareSettings(RunSettings, ObservationSettings, RewardSettings, EncoderChoice):
    """Which methods meet on which datasets; None is filled in as documented."""

    datasets: Annotated[tuple[HomeText, ...], Field(min_length=1)] = ("pydocs",)
    """ir_datasets ids (pydocs, beir/scifact, cranfield, ...) or folders in BEIR's layout"""
    methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """names of methods, or all; all but non-maw-wide, which wants a GPU, unless given (--quick:
    those that train no encoder)"""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """of the learners; 0 1 2 unless given (--quick: 0)"""
    timesteps: Count | None = None
    """training queries that each learner sees; as train_grpo.py (--quick: 40000)"""
    baseline: str | None = None
    """what all are tested against; non-maw-trained (--quick: standard-attention)"""
    folds: Folds | None = None
    """cut all queries, whatever their subsets, into so many folds and compare on all of them;
    unless given, 5 where there are no subsets"""
    seed_intervals: bool = False
    """also give 95% intervals over seeds (Student's t); needs two seeds or more"""
    quick: bool = False
    """one seed, fewer timesteps, no encoder trained but the MAW encoder"""

    @property
    def tested_against(self) -> str:
        """Name of the baseline."""
        return self.baseline or (QUICK_BASELINE if self.quick else BASELINE)

    @property
    def method_names(self) -> tuple[str, ...]:
        """All methods to run, the baseline among them, in the order of `METHODS`."""
        names = set(self.methods or ())
        if self.methods is None:
            left_out = ("dear", "very dear") if self.quick else ("very dear",)
            names = {name for name, method in METHODS.items() if method.cost not in left_out}
        elif self.methods == ("all",):
            names = set(METHODS)
        names.add(self.tested_against)
        return tuple(name for name in METHODS if name in names)

    @property
    def learner_seeds(self) -> tuple[int, ...]:
        """Seeds of the learners."""
        return self.seeds or ((0,) if self.quick else (0, 1, 2))

    def common(self, dataset: str, fold: int = 0) -> OnlineSettings:
        """What the methods' specifications are made of."""
        timesteps = QUICK_TIMESTEPS if self.quick else OnlineSettings.timesteps
        return OnlineSettings(
            dataset=dataset,
            encoder=self.encoder,
            depths=self.depths,
            encoder_seed=self.encoder_seed,
            observation=self.observation,
            network=self.network,
            alignment=self.alignment,
            reward_weights=self.reward_weights,
            device=self.device,
            timesteps=self.timesteps or timesteps,
            fold=fold,
            folds=self.folds,
            balance=self.balance,
        )

    @model_validator(mode="after")
    def _fit_the_comparison(self) -> Self:
        for name, given in (("datasets", self.datasets), ("seeds", self.seeds or ())):
            if len(set(given)) != len(given):
                raise InputError(f"{name} must differ, got {' '.join(map(str, given))}")
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
