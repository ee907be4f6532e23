"""Settings that all training runners share; tyro makes the command line of them."""

from dataclasses import dataclass, field
from pathlib import Path

from agents.networks import check_network
from maw_gym.errors import InputError
from maw_gym.tables.depth_table import checked_blocks
from maw_gym.tables.rewards import DEFAULT_WEIGHTS, RewardSpec


@dataclass(frozen=True)
class CommonSettings:
    """What every training run is told."""

    dataset: str = "pydocs"
    """an ir_datasets id (pydocs, beir/scifact, cranfield, ...) or a folder in BEIR's layout"""
    encoder: str = "trained"
    """trained (on this dataset, cached), untrained, or the path of an encoder.safetensors"""
    observation: tuple[str, ...] = ("profile",)
    """blocks of the observation, of: attention, profile, content, clusters"""
    network: str = "auto"
    """shared (one small network scores every depth by its own numbers: profile, clusters), mlp
    (all numbers in, all depths out), or auto: shared where the observation allows it"""
    alignment: str = "ndcg"
    """relevance alignment in the reward: ndcg or listwise"""
    reward_weights: tuple[float, float, float] = DEFAULT_WEIGHTS
    """of entropy, focus and alignment"""
    seed: int = 0
    """of everything random in the run"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    logdir: Path = field(default_factory=lambda: Path("runs"))
    """folder of all runs; `tensorboard --logdir` wants the same"""
    run_name: str | None = None
    """folder of this run inside logdir; made of learner, dataset, seed and time unless given"""
    fold: int = 0
    """which of 5 folds is the test split, for datasets without subsets"""

    @property
    def reward(self) -> RewardSpec:
        """Weights and alignment as one."""
        return RewardSpec(self.reward_weights, self.alignment)

    def check(self) -> None:
        """Refuse what can be refused before any work starts.

        Raises:
            InputError: a setting is out of its range.
        """
        checked_blocks(self.observation)
        check_network(self.network, self.observation)
        RewardSpec(self.reward_weights, self.alignment)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be from 0 to 2^32 - 1, got {self.seed}")


@dataclass(frozen=True)
class OnlineSettings(CommonSettings):
    """What a learner that acts in the environment is told besides."""

    timesteps: int = 400_000
    """environment steps, over all sub-environments together"""
    num_envs: int = 256
    """sub-environments stepped at once"""
    group_size: int = 8
    """neighbouring sub-environments that share each query"""
    evaluations: int = 20
    """how many times the validation queries are looked at; the best policy is kept"""
    checkpoint_every: int = 50
    """rollouts between checkpoints; the last two are kept"""
    resume: Path | None = None
    """folder of a run that was stopped: go on with it, under its own settings"""

    def check(self) -> None:
        """Refuse what can be refused before any work starts."""
        super().check()
        for name in ("timesteps", "num_envs", "group_size", "evaluations", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_envs % self.group_size:
            raise InputError(
                f"num_envs {self.num_envs} is not divisible by group_size {self.group_size}"
            )
