"""What a comparison is told, checked before any work starts."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from maw_gym.errors import InputError
from runners.experiments.methods import METHODS, check_methods
from runners.experiments.settings import CommonSettings, OnlineSettings

QUICK_TIMESTEPS: Final = 40_000
QUICK_BASELINE: Final = "standard-attention"
# Where a run lies is no part of what it is.
PLACES: Final = ("logdir", "run_name", "resume")


@dataclass(frozen=True)
class CompareSettings:
    """Which methods meet on which datasets; None is filled in as documented."""

    datasets: tuple[str, ...] = ("pydocs",)
    """ir_datasets ids (pydocs, beir/scifact, cranfield, ...) or folders in BEIR's layout"""
    methods: tuple[str, ...] | None = None
    """names of methods, or all; all but non-maw-wide, which wants a GPU, unless given (--quick:
    those that train no encoder)"""
    seeds: tuple[int, ...] | None = None
    """of the learners; 0 1 2 unless given (--quick: 0)"""
    timesteps: int | None = None
    """training queries that each learner sees; as train_grpo.py (--quick: 40000)"""
    baseline: str | None = None
    """what all are tested against; non-maw-trained (--quick: standard-attention)"""
    encoder: str = "trained"
    """trained (on each dataset, cached), untrained, or the path of an encoder.safetensors"""
    observation: tuple[str, ...] = CommonSettings.observation
    """blocks of the observation, of: attention, profile, content, clusters"""
    network: str = CommonSettings.network
    """of all learners: shared, mlp or auto, see train_grpo.py"""
    alignment: str = CommonSettings.alignment
    """relevance alignment in the reward: ndcg or listwise"""
    reward_weights: tuple[float, float, float] = CommonSettings.reward_weights
    """of entropy, focus and alignment"""
    seed_intervals: bool = False
    """also give 95% intervals over seeds (Student's t); needs two seeds or more"""
    quick: bool = False
    """one seed, fewer timesteps, no encoder trained but the MAW encoder"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    logdir: Path = field(default_factory=lambda: Path("runs"))
    """folder of all runs"""
    run_name: str | None = None
    """folder of this comparison inside logdir; made of datasets and time unless given"""
    resume: Path | None = None
    """folder of a comparison to go on with, under its own settings"""

    def filled(self) -> Self:
        """The same with every None that stands for a default replaced."""
        methods = self.methods
        if methods is None:
            dear = "dear" if self.quick else "very dear"
            methods = tuple(
                n for n, method in METHODS.items() if method.cost not in (dear, "very dear")
            )
        elif methods == ("all",):
            methods = tuple(METHODS)
        baseline = self.baseline or (QUICK_BASELINE if self.quick else "non-maw-trained")
        if methods and baseline in METHODS and baseline not in methods:
            methods = (*methods, baseline)  # the others are tested against it
        timesteps = QUICK_TIMESTEPS if self.quick else OnlineSettings.timesteps
        return replace(
            self,
            methods=tuple(sorted(methods, key=lambda n: [*METHODS, n].index(n))),
            seeds=((0,) if self.quick else (0, 1, 2)) if self.seeds is None else self.seeds,
            timesteps=timesteps if self.timesteps is None else self.timesteps,
            baseline=baseline,
        )

    def check(self) -> None:
        """Refuse what can be refused before any work starts; of filled settings.

        Raises:
            InputError: a name that does not exist, or a number out of its range.
        """
        assert self.methods is not None
        assert self.seeds is not None
        assert self.timesteps is not None
        assert self.baseline is not None
        for name in ("datasets", "methods", "seeds"):
            if not getattr(self, name):
                raise InputError(f"give at least one of --{name}")
        for name in ("datasets", "seeds"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise InputError(f"{name} must differ, got {' '.join(map(str, given))}")
        check_methods(self.methods)
        check_methods([self.baseline])
        if METHODS[self.baseline].kind == "oracle":
            raise InputError(f"the baseline cannot be {self.baseline!r}, which reads the answers")
        if self.seed_intervals and len(self.seeds) < 2:
            raise InputError(
                f"an interval over seeds needs two seeds or more, got {len(self.seeds)}; give"
                " --seeds 0 1 2 or leave --seed-intervals out"
            )
        for seed in self.seeds:
            self.common(self.datasets[0], seed).check()

    def common(self, dataset: str, seed: int = 0, fold: int = 0) -> OnlineSettings:
        """Settings of one training run of the comparison."""
        assert self.timesteps is not None
        return OnlineSettings(
            dataset=dataset,
            encoder=self.encoder,
            observation=tuple(self.observation),
            network=self.network,
            alignment=self.alignment,
            reward_weights=self.reward_weights,
            seed=seed,
            device=self.device,
            timesteps=self.timesteps,
            fold=fold,
        )

    def to_json(self) -> dict[str, Any]:
        """The settings that make a comparison what it is, as JSON values."""
        told = {name: value for name, value in asdict(self).items() if name not in PLACES}
        plain: dict[str, Any] = json.loads(json.dumps(told))
        return plain
