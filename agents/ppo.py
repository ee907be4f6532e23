"""PPO of Stable-Baselines3, set up for episodes of one step.

What one step makes of PPO's settings:

- Inert: `gamma` and `gae_lambda`. Every advantage is reward minus value, every return the reward:
  there is no next state to discount or to average over. They are not offered; `make_ppo` sets
  gamma 0 and gae_lambda 1. For the same reason nothing is ever bootstrapped.
- Inert: `use_sde` and `sde_sample_freq`, which belong to continuous actions.
- `n_steps` only decides, with the number of environments, how many samples a rollout has: they are
  independent of each other, and 8 steps of 64 environments are as good as 64 of 8. SB3's default of
  2,048 steps would be 131,072 samples of one policy before the first update.
- NOT inert: `normalize_advantage` (per minibatch, as in SB3), `clip_range`, `n_epochs`,
  `batch_size`, `ent_coef`, `vf_coef`, `max_grad_norm`, `target_kl`, the learning rate. With one
  epoch of one batch the policy has not moved when the loss is computed: all ratios are 1 and
  clipping is inert; with several epochs it is what keeps the policy near the one that acted.
- `vf_coef` weighs a value function that predicts a mere reward; it is PPO's baseline, so it stays.
- Groups of environments that share a query are harmless, since PPO takes samples one by one.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv

from agents.grpo.policies import GRPOPolicyNetwork
from maw_gym.errors import InputError
from maw_gym.settings import Above0, Coefficient, Count, Rate, checked


@checked
class PPOSettings:
    """Settings of PPO that matter in episodes of one step."""

    learning_rate: Rate = 1e-3
    """of Adam"""
    n_steps: Count = 8
    """steps of every sub-environment per rollout"""
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


def check_batches(settings: PPOSettings, num_envs: int) -> None:
    """Refuse batches that do not divide a rollout.

    Raises:
        InputError: with the numbers.
    """
    samples = settings.n_steps * num_envs
    if samples < 2:
        raise InputError("a rollout of PPO needs 2 samples or more; raise n_steps or num_envs")
    if samples % min(settings.batch_size, samples):
        raise InputError(
            f"batch_size {settings.batch_size} does not divide the {samples} samples of a rollout"
            " (n_steps * num_envs)"
        )


def make_ppo(
    env: GymEnv,
    settings: PPOSettings | None = None,
    *,
    policy: type[GRPOPolicyNetwork] = GRPOPolicyNetwork,
    policy_kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    device: torch.device | str = "auto",
    tensorboard_log: str | None = None,
    stats_window_size: int = 100,
) -> PPO:
    """PPO with the network of GRPO.

    Args:
        env: environment of one-step episodes with Discrete actions.
        settings: see `PPOSettings`; None are the defaults.
        policy: GRPOPolicyNetwork or SharedPolicyNetwork.
        policy_kwargs: its arguments, for instance
            ``{"features_extractor_kwargs": {"mean": ..., "scale": ...}}``.
        seed: of all pseudo-random generators.
        device: where the network lies.
        tensorboard_log: folder of the logs; None for none.
        stats_window_size: episodes in the mean reward that is logged.

    Raises:
        InputError: a setting is out of its range, or batches do not divide the rollout.
    """
    told = settings or PPOSettings()
    count = getattr(env, "num_envs", 1)
    check_batches(told, count)
    return PPO(
        policy,
        env,
        learning_rate=told.learning_rate,
        n_steps=told.n_steps,
        batch_size=min(told.batch_size, told.n_steps * count),
        n_epochs=told.n_epochs,
        gamma=0.0,
        gae_lambda=1.0,
        clip_range=told.clip_range,
        normalize_advantage=told.normalize_advantage,
        ent_coef=told.ent_coef,
        vf_coef=told.vf_coef,
        max_grad_norm=told.max_grad_norm,
        target_kl=told.target_kl,
        stats_window_size=stats_window_size,
        tensorboard_log=tensorboard_log,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device=device,
    )
