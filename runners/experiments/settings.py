"""Settings that experiments share: what is routed, what a router sees, where a run is kept.

A method's specification is one of these together with the settings of its learner: everything that
its result depends on. The settings of a run are a specification and a `RunSettings`.
"""

from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from agents.grpo.settings import DEFAULTS, GRPOSettings
from agents.settings import (
    FullInformationSettings,
    PPOSettings,
    SupervisedSettings,
    check_batches,
    check_network,
)
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.bandit import DEFAULT_WEIGHTS, RewardSpec
from maw_gym.errors import InputError
from maw_gym.settings import (
    Count,
    Folds,
    HomePath,
    HomeText,
    Index,
    Seed,
    Share,
    checked,
)
from maw_gym.tables.depth_table import checked_blocks

LARGEST_ROLLOUT = 2**22  # samples, some gigabytes of observations


@checked
class EncoderChoice:
    """Which encoder, where."""

    encoder: HomeText = "trained"
    """trained (on this dataset, cached), untrained, or the path of an encoder.safetensors"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    text_encoder: HomeText = "wordllama"
    """what the encoder stands on: wordllama (static token embeddings), minilm (all-MiniLM-L6-v2),
    the folder or hub name of a transformer, or auto (wordllama, or untrained minilm where that is
    better); the file of an encoder has its own"""
    train_text_encoder: bool = False
    """train the text encoder along with a trained encoder"""
    encoder_seed: Seed = 0
    """of the training of a trained encoder"""
    balance: Share = 1.0
    """exponent on the sizes of groups of queries, such as packages, when an encoder is trained and
    when the environment draws queries: 1 as they are, 0 all groups alike"""

    @property
    def encoder_training(self) -> TrainingSettings:
        """How a trained encoder is trained."""
        return TrainingSettings(
            train_text_encoder=self.train_text_encoder,
            balance=self.balance,
            seed=self.encoder_seed,
        )


@checked
class DataSettings(EncoderChoice):
    """Which queries go through which encoder."""

    dataset: HomeText = "pydocs"
    """an ir_datasets id (pydocs, beir/scifact, ...), pydocs:NAME,NAME for docstrings of installed
    packages, or a folder in BEIR's layout"""
    fold: Index = 0
    """which fold is the test split, where there are folds"""
    folds: Folds | None = None
    """cut all queries, whatever their subsets, into so many folds; unless given, 5 where there are
    no subsets"""


@checked
class RewardSettings:
    """What a depth is paid for."""

    alignment: Literal["ndcg", "listwise"] = "ndcg"
    """relevance alignment in the reward"""
    reward_weights: tuple[float, float, float] = DEFAULT_WEIGHTS
    """of entropy, focus and alignment"""

    @property
    def reward(self) -> RewardSpec:
        """Weights and alignment as one."""
        return RewardSpec(self.reward_weights, self.alignment)

    @model_validator(mode="after")
    def _are_a_reward(self) -> Self:
        assert self.reward
        return self


@checked
class ObservationSettings:
    """What a router sees, and its shape."""

    observation: tuple[str, ...] = ("profile",)
    """blocks of the observation, of: attention, profile, retrieval, content"""
    network: Literal["auto", "shared", "mlp"] = "auto"
    """shared (one small network scores every depth by its own numbers: profile, retrieval), mlp
    (all numbers in, all depths out), or auto: shared where the observation allows it"""

    @model_validator(mode="after")
    def _blocks_fit_the_network(self) -> Self:
        checked_blocks(self.observation)
        check_network(self.network, self.observation)
        return self


@checked
class TaskSettings(RewardSettings, DataSettings):
    """What a method depends on that learns nothing."""

    seed: Seed = 0
    """of everything random"""


@checked
class RouterSettings(ObservationSettings, TaskSettings):
    """What a router depends on beside its training."""


@checked
class OnlineSettings(RouterSettings):
    """How a learner meets its queries in the environment."""

    timesteps: Count = 100_000
    """environment steps, over all sub-environments together"""
    num_envs: Count = 256
    """sub-environments stepped at once"""
    group_size: Count = DEFAULTS.group_size
    """neighbouring sub-environments that share each query"""
    evaluations: Count = 20
    """how many times the validation queries are looked at"""

    @model_validator(mode="after")
    def _fill_rollouts(self) -> Self:
        if self.num_envs % self.group_size:
            raise InputError(
                f"num_envs {self.num_envs} is not divisible by group_size {self.group_size}"
            )
        steps = getattr(self, "n_steps", 1)  # of the learner that these settings belong to
        if self.num_envs * steps > LARGEST_ROLLOUT:
            raise InputError(
                f"a rollout of {self.num_envs} num_envs times {steps} n_steps is larger than"
                f" {LARGEST_ROLLOUT:,} samples; lower one of them"
            )
        return self


@checked
class GRPOSpec(GRPOSettings, OnlineSettings):
    """All that a training with GRPO depends on."""


@checked
class PPOSpec(PPOSettings, OnlineSettings):
    """All that a training with PPO depends on."""

    @model_validator(mode="after")
    def _fill_batches(self) -> Self:
        check_batches(self, self.num_envs)
        return self


@checked
class SupervisedSpec(SupervisedSettings, RouterSettings):
    """All that a supervised training depends on."""

    labels: Literal["rule", "oracle"] = "oracle"
    """rule (by the number of relevant documents) or oracle (the best depth of each query)"""


@checked
class FullInformationSpec(FullInformationSettings, RouterSettings):
    """All that a training on the rewards of all depths depends on."""


@checked
class FolderSettings:
    """Where a run is kept: no part of what it is."""

    logdir: HomePath = field(default_factory=lambda: Path("runs"))
    """folder of all runs; `tensorboard --logdir` wants the same"""
    run_name: str | None = None
    """folder of this run inside logdir; made of what is run and the time unless given"""


@checked
class RunSettings(FolderSettings):
    """Where a run is kept that can be stopped and go on."""

    resume: HomePath | None = None
    """folder of a run that was stopped: go on with it, under its own settings"""


@checked
class OnlineRunSettings(RunSettings):
    """Where a run of a learner in the environment is kept."""

    main_flags: ClassVar = (
        "dataset",
        "text_encoder",
        "observation",
        "timesteps",
        "seed",
        "device",
        "run_name",
        "resume",
    )

    checkpoint_every: Count = 50
    """rollouts between checkpoints; the last two are kept"""
