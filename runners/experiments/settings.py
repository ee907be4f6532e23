"""Settings that experiments share: what is routed, how a learner is trained, where a run is kept.

A run's settings are a `Spec` and a `RunSettings`. Every field is a flag.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import model_validator

from maw_gym.agents.settings import PPOSettings, ppo_arguments
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.bandit import DEFAULT_WEIGHTS, RewardSpec
from maw_gym.errors import InputError
from maw_gym.runners.experiments.command_line import Flag
from maw_gym.settings import Count, Folds, HomePath, HomeText, Index, Seed, Share, checked
from maw_gym.tables.depth_table import is_shared

# Of a training, those that its help shows first.
MAIN_FLAGS: Final = (
    *("dataset", "text_encoder", "observation", "timesteps", "seed"),
    *("device", "run_name", "resume"),
)


def check_different(settings: object, *names: str) -> None:
    """Refuse lists that name something twice."""
    for name in names:
        given = getattr(settings, name) or ()
        if len(set(given)) < len(given):
            raise InputError(f"{name} must differ, got {' '.join(map(str, given))}")


@checked
class TaskSettings:
    """Which queries go through which encoder, what a depth is paid for, what a router sees."""

    dataset: HomeText = "pydocs"
    """an ir_datasets id (pydocs, beir/scifact, ...), pydocs:NAME,NAME for docstrings of installed
    packages, or a folder in BEIR's layout"""
    fold: Index = 0
    """which fold is the test split, where there are folds"""
    folds: Folds | None = None
    """cut all queries, whatever their subsets, into so many folds; unless given, 5 where there are
    no subsets"""
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
    alignment: Literal["ndcg", "listwise"] = "ndcg"
    """relevance alignment in the reward"""
    reward_weights: tuple[float, float, float] = DEFAULT_WEIGHTS
    """of entropy, focus and alignment"""
    observation: tuple[str, ...] = ("profile",)
    """blocks of the observation, of: attention, profile, retrieval, content"""
    network: Literal["auto", "shared", "mlp"] = "auto"
    """shared (one small network scores every depth by its own numbers: profile, retrieval), mlp
    (all numbers in, all depths out), or auto: shared where the observation allows it"""
    seed: Seed = 0
    """of everything random"""

    @property
    def encoder_training(self) -> TrainingSettings:
        """How a trained encoder is trained."""
        return TrainingSettings(
            train_text_encoder=self.train_text_encoder,
            balance=self.balance,
            seed=self.encoder_seed,
        )

    @property
    def reward(self) -> RewardSpec:
        """Weights and alignment as one."""
        return RewardSpec(self.reward_weights, self.alignment)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        _ = self.reward  # refuses weights that are none
        is_shared(self.network, self.observation)
        return self


@checked
class OnlineSettings:
    """How a learner meets its queries in the environment."""

    timesteps: Count = 100_000
    """environment steps, over all sub-environments together"""
    num_envs: Count = 256
    """sub-environments stepped at once"""
    evaluations: Count = 20
    """how many times the validation queries are looked at"""


@checked
class Spec:
    """All that a method's result depends on: the task, and how a learner is trained.

    The methods of a table have `task` and `online` in common. `online` is None for what never meets
    the environment, `learner` for what learns nothing; of an encoder to compare with it is a
    `TrainingSettings`, of a learner from outside the sha256 of its source.
    """

    task: TaskSettings = TaskSettings()
    online: OnlineSettings | None = OnlineSettings()
    learner: Any = None

    @model_validator(mode="after")
    def _fill_rollouts(self) -> Self:
        if self.online is not None:
            envs, group = self.online.num_envs, getattr(self.learner, "group_size", 1)
            if envs % group:
                raise InputError(f"num_envs {envs} is not divisible by group_size {group}")
            if isinstance(self.learner, PPOSettings):
                ppo_arguments(self.learner, envs)
        return self


@checked
class FolderSettings:
    """Where a run is kept: no part of what it is."""

    logdir: HomePath = Path("runs")
    """folder of all runs; `tensorboard --logdir` wants the same"""
    run_name: str | None = None
    """folder of this run inside logdir; made of what is run and the time unless given"""
    config: HomePath | None = None
    """YAML file of settings, or the config.json of a run, for what no flag says"""


@checked
class RunSettings(FolderSettings):
    """Where a run is kept that can be stopped and go on."""

    resume: HomePath | None = None
    """folder of a run that was stopped: go on with it, under its own settings"""


@checked
class TrainingRunSettings(RunSettings):
    """Where a training in the environment is kept."""

    checkpoint_every: Count = 50
    """rollouts between checkpoints; the last two are kept"""
    callbacks: Annotated[tuple[str, ...], Flag("callback")] = ()
    """callbacks of Stable-Baselines3 that follow the training, each as module:Class"""
