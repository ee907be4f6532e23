"""How learners beside GRPO are trained; as `maw_gym.agents.grpo.settings` it needs no torch."""

import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from maw_gym.errors import InputError
from maw_gym.settings import Above0, Coefficient, Count, Rate, checked


@checked
class FitSettings:
    """How a router is fitted."""

    epochs: Count = 40
    """passes over the training queries; the epoch of largest validation reward is kept"""
    batch_size: Count = 256
    """queries per gradient step"""
    learning_rate: Rate = 1e-3
    """of AdamW"""
    weight_decay: Coefficient = 0.01
    """of AdamW"""


@checked
class SupervisedSettings(FitSettings):
    """How the supervised router is trained."""

    labels: Literal["rule", "oracle"] = "oracle"
    """rule (by the number of relevant documents) or oracle (the best depth of each query)"""
    ranking_weight: Coefficient = 1.0
    """of the ranking loss beside the cross-entropy; 0 leaves it out"""
    temperature_start: Above0 = 2.0
    """of the Gumbel-softmax in the first step"""
    temperature_end: Above0 = 0.5
    """of the Gumbel-softmax in the last step"""
    negatives: Count = 1024
    """documents drawn per step that the relevant ones are ranked against"""

    def temperature(self, progress: float) -> float:
        """Geometric from start to end over [0, 1], as Jang et al. 2017 (arXiv:1611.01144)."""
        ratio = self.temperature_end / self.temperature_start
        return self.temperature_start * math.pow(ratio, progress)


@checked
class FullInformationSettings(FitSettings):
    """How the full-information router is trained."""

    ent_coef: Coefficient = 0.1
    """weight of the entropy bonus, in units of the standardised reward; without it the policy
    falls onto the best fixed depth in a few epochs, where its gradient is 0"""


@checked
class PPOSettings:
    """Settings of PPO that matter in episodes of one step.

    `gamma` and `gae_lambda` are inert there: every advantage is reward minus value. `n_steps` only
    decides how many samples a rollout has; SB3's default of 2,048 would be 131,072 from 64
    environments.
    """

    learning_rate: Rate = 1e-3
    """of Adam"""
    n_steps: Count = 8
    """steps of every sub-environment per rollout"""
    group_size: Count = 8
    """neighbouring sub-environments that share each query, as GRPO's do; PPO takes them singly"""
    batch_size: Annotated[int, Field(ge=2, le=2**24)] = 128
    """samples per gradient step"""
    n_epochs: Count = 4
    """passes over each rollout"""
    clip_range: Above0 = 0.2
    """the ratio to the policy that acted is clipped to 1 - clip_range .. 1 + clip_range"""
    normalize_advantage: bool = True
    """standardise the advantages of each minibatch"""
    ent_coef: Coefficient = 0.01
    """weight of the entropy bonus"""
    vf_coef: Coefficient = 0.5
    """weight of the value loss"""
    max_grad_norm: Above0 = 0.5
    """largest norm of the gradient"""
    target_kl: Above0 | None = None
    """stop the passes over a rollout at this divergence from the policy that acted"""


def ppo_arguments(settings: PPOSettings, num_envs: int) -> dict[str, Any]:
    """Arguments of Stable-Baselines3's PPO for episodes of one step in so many environments.

    Raises:
        InputError: batches do not divide a rollout, or it has a single sample.
    """
    samples = settings.n_steps * num_envs
    if samples < 2:
        raise InputError("a rollout of PPO needs 2 samples or more; raise n_steps or num_envs")
    given = asdict(settings) | {"batch_size": min(settings.batch_size, samples)}
    if samples % given["batch_size"]:
        raise InputError(
            f"batch_size {settings.batch_size} does not divide the {samples} samples of a rollout"
            " (n_steps * num_envs)"
        )
    del given["group_size"]
    return given | {"gamma": 0.0, "gae_lambda": 1.0}
