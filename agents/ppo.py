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

from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv

from agents.grpo.policies import GRPOPolicyNetwork
from agents.settings import PPOSettings, check_batches


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
    given = settings or PPOSettings()
    count = getattr(env, "num_envs", 1)
    check_batches(given, count)
    return PPO(
        policy,
        env,
        learning_rate=given.learning_rate,
        n_steps=given.n_steps,
        batch_size=min(given.batch_size, given.n_steps * count),
        n_epochs=given.n_epochs,
        gamma=0.0,
        gae_lambda=1.0,
        clip_range=given.clip_range,
        normalize_advantage=given.normalize_advantage,
        ent_coef=given.ent_coef,
        vf_coef=given.vf_coef,
        max_grad_norm=given.max_grad_norm,
        target_kl=given.target_kl,
        stats_window_size=stats_window_size,
        tensorboard_log=tensorboard_log,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device=device,
    )
