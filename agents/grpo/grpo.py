"""GRPO as a Stable-Baselines3 algorithm, for environments whose episodes last one step.

Group Relative Policy Optimization, after Shao et al. 2024 (DeepSeekMath, arXiv:2402.03300), in the
form this project started from: a ratio to a frozen reference policy, a critic, an entropy bonus.

Kept of DeepSeekMath: advantages relative to a group that answers the same observation
(`advantage="group"`, the default), the ratio to the policy that acted, clipped if asked for
(`ratio="old", clip_range=0.2`), the KL penalty to a reference policy as a term of the loss
(`kl="k3"`), several passes over a rollout (`n_epochs`).
Left out: everything about sequences (token-level ratios, averaging over lengths, process rewards):
here an answer is one action. The reference is renewed every few rollouts, not once per outer
iteration with a new reward model.
Kept of the form it started from: a reference renewed every 5 rollouts and KL 0.1, which are
defaults, and the critic's baseline (`advantage="critic"`, which needs no groups). Its unclipped
ratio to the reference (`ratio="reference"`) is an option and not the default: with group advantages
on MAWDepth-v0 it stopped with an infinite gradient after some 300,000 steps (learning rate 1e-3),
since an action that the reference all but excludes has an unbounded ratio.
Changed: the KL is summed over all actions (`kl="exact"`), since with discrete actions nothing has
to be estimated, and its sampled mean of log-ratios (`kl="k1"`) has a gradient that is zero on
average: as a penalty it only adds noise.
Added: the mean-only advantage of Dr. GRPO (Liu et al. 2025), asymmetric clipping of DAPO (Yu et al.
2025).
"""

import math
from copy import deepcopy
from typing import Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from agents.grpo import losses
from agents.grpo.buffers import GRPODictRolloutBuffer, GRPORolloutBuffer, Rollout
from agents.grpo.checks import check_settings
from agents.grpo.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    SharedPolicy,
    actor_critic,
    actor_log_probs,
)
from agents.grpo.settings import DEFAULTS


class GRPO(OnPolicyAlgorithm):
    """Group Relative Policy Optimization for one-step episodes and discrete actions.

    The loss of a batch is policy loss + kl_coef * KL + vf_coef * value loss - ent_coef * entropy.
    gamma and gae_lambda of other algorithms are not offered: an episode of one step has no future
    to discount, its return is its reward.

    Args:
        policy: The policy model to use (MlpPolicy, SharedPolicy, CnnPolicy, MultiInputPolicy, or a
            class).
        env: The environment to learn from (if registered in Gymnasium, can be str). For group
            advantages a VecEnv whose neighbours in groups of `group_size` share their observation.
        learning_rate: The learning rate, may be a function of the remaining progress (1 to 0).
        n_steps: Steps of each environment per rollout; a rollout has n_steps * n_envs samples.
        batch_size: Samples per gradient step; None: the whole rollout at once. Batches need not
            respect groups: advantages belong to the rollout and are never normalised per batch.
        n_epochs: Passes over each rollout.
        advantage: "group": reward minus the mean of its group, over the group's standard deviation
            (DeepSeekMath). "group_mean": without the division (Dr. GRPO). "critic": reward minus
            the value head's estimate, needs no groups. Without the critic the value head is not
            trained, and no value loss is logged.
        group_size: Environments per group, at least 2; only for group advantages.
        ratio: Denominator of the probability ratio: "reference", the frozen policy, or "old", the
            policy that acted in the rollout.
        clip_range: Ratios are clipped to [1 - clip_range, 1 + clip_range]; None: not at all.
        clip_range_high: Upper range where it differs from the lower (DAPO); None: it does not.
        kl: Penalty to the reference: "exact", over all actions, or a sampled estimate "k1", "k2",
            "k3" (see losses.sampled_kl for what their gradients do).
        kl_coef: Coefficient of the KL penalty.
        reference_interval: Rollouts after which the reference becomes a copy of the policy; 1
            makes it the policy that acted; None keeps the initial policy for ever.
        ent_coef: Coefficient of the entropy bonus.
        vf_coef: Coefficient of the value loss; without effect on group advantages.
        max_grad_norm: Largest norm of the gradient, which is scaled down to it.
        stats_window_size: Episodes in the mean reward that is logged.
        tensorboard_log: Log location for TensorBoard (None: no logging).
        policy_kwargs: Additional arguments of the policy.
        verbose: 0 for no output, 1 for info messages, 2 for debug messages.
        seed: Seed of the pseudo-random generators.
        device: Device on which the code runs; "auto": the GPU if there is one.
        _init_setup_model: Whether to build the network at the creation of the instance.

    Raises:
        ValueError: A setting out of its range, an action space that is not Discrete from 0, or a
            number of environments that groups do not divide; when learning: episodes of several
            steps, or differing observations in a group.
        FloatingPointError: When learning: a reward, loss or gradient is not finite. The policy
            keeps the parameters from before that gradient step.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "SharedPolicy": SharedPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    rollout_buffer: GRPORolloutBuffer
    reference_policy: ActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = DEFAULTS.learning_rate,
        n_steps: int = DEFAULTS.n_steps,
        batch_size: int | None = DEFAULTS.batch_size,
        n_epochs: int = DEFAULTS.n_epochs,
        advantage: str = DEFAULTS.advantage,
        group_size: int = DEFAULTS.group_size,
        ratio: str = DEFAULTS.ratio,
        clip_range: float | None = DEFAULTS.clip_range,
        clip_range_high: float | None = DEFAULTS.clip_range_high,
        kl: str = DEFAULTS.kl,
        kl_coef: float = DEFAULTS.kl_coef,
        reference_interval: int | None = DEFAULTS.reference_interval,
        ent_coef: float = DEFAULTS.ent_coef,
        vf_coef: float = DEFAULTS.vf_coef,
        max_grad_norm: float = DEFAULTS.max_grad_norm,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            # 0 also keeps SB3 from adding a value to the reward of a truncated episode
            gamma=0.0,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.advantage = advantage
        self.group_size = group_size
        self.ratio = ratio
        self.clip_range = clip_range
        self.clip_range_high = clip_range_high
        self.kl = kl
        self.kl_coef = kl_coef
        self.reference_interval = reference_interval
        self._rollouts_since_renewal = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # Checked here, not in __init__: load() first builds the algorithm with its defaults and
        # perhaps without an environment, and only then puts the saved settings in place.
        check_settings(self)
        is_dict = isinstance(self.observation_space, spaces.Dict)
        self.rollout_buffer_class = GRPODictRolloutBuffer if is_dict else GRPORolloutBuffer
        self.rollout_buffer_kwargs = {"advantage": self.advantage, "group_size": self.group_size}
        super()._setup_model()
        self.reference_policy = deepcopy(self.policy).requires_grad_(False)
        self.reference_policy.set_training_mode(False)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Collect one rollout as SB3 does; see OnPolicyAlgorithm."""
        completed = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if not completed:
            # A callback stopped SB3 between the step and the update of _last_obs. Learning on
            # from there would pair the old observations with rewards for the new ones: reset.
            self._last_obs = None
        return completed

    def train(self) -> None:
        """Update the policy with the current rollout, and the reference when its time has come."""
        # Eval mode, as in acting: dropout between sampling and the loss would change the
        # probabilities of the very same parameters, and the ratios would explode.
        self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        rollout = self.rollout_buffer.tensors()
        with th.no_grad():  # nothing changes the reference in here: once serves all epochs
            reference = actor_log_probs(self.reference_policy, rollout.observations)
        rollout = rollout._replace(reference_log_probs=reference)

        history = []
        for _ in range(self.n_epochs):
            history += [self._update(batch) for batch in rollout.batches(self.batch_size)]
            self._n_updates += 1
        self._rollouts_since_renewal += 1
        if self._rollouts_since_renewal == self.reference_interval:
            self.reference_policy.load_state_dict(self.policy.state_dict())
            self._rollouts_since_renewal = 0

        for name in history[0]:
            self.logger.record(f"train/{name}", np.mean([record[name] for record in history]))
        self.logger.record("policy/entropy", -np.mean([x["entropy_loss"] for x in history]))
        if self.advantage != "critic":
            self.logger.record("train/zero_std_groups", self.rollout_buffer.zero_std_groups)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _update(self, batch: Rollout) -> dict[str, float]:
        """One gradient step; returns what is logged of it."""
        terms: dict[str, th.Tensor] = {}
        if self.advantage == "critic":
            log_probs, values = actor_critic(self.policy, batch.observations)
            terms["value_loss"] = F.mse_loss(batch.spread(values), batch.returns)
        else:
            log_probs = actor_log_probs(self.policy, batch.observations)
        log_probs = batch.spread(log_probs)  # (U, D) -> (B, D)
        reference_log_probs = batch.spread(batch.reference_log_probs)
        action = batch.actions[:, None]
        log_prob = log_probs.gather(1, action)[:, 0]  # (B, D) -> (B,)
        reference_log_prob = reference_log_probs.gather(1, action)[:, 0]
        base = reference_log_prob if self.ratio == "reference" else batch.log_probs
        ratio = (log_prob - base).exp()
        terms["policy_loss"] = losses.policy_loss(
            ratio, batch.advantages, self.clip_range, self.clip_range_high
        )
        # Logged exactly whatever the penalty is, so that runs of different kinds compare
        terms["kl_reference"] = losses.exact_kl(log_probs, reference_log_probs).mean()
        penalty = terms["kl_reference"]
        if self.kl != "exact":
            penalty = losses.sampled_kl(log_prob, reference_log_prob, self.kl).mean()
        terms["entropy_loss"] = -losses.entropy(log_probs).mean()
        loss = terms["policy_loss"] + self.kl_coef * penalty + self.ent_coef * terms["entropy_loss"]
        if "value_loss" in terms:
            loss = loss + self.vf_coef * terms["value_loss"]
        terms["loss"] = loss
        if self.clip_range is not None:
            terms["clip_fraction"] = losses.clip_fraction(
                ratio, self.clip_range, self.clip_range_high
            )

        # one transfer from the device for all of them
        record = dict(zip(terms, th.stack(list(terms.values())).tolist(), strict=True))
        self._require_finite(record)
        self.policy.optimizer.zero_grad()
        loss.backward()
        norm = th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        record["grad_norm"] = float(norm)
        self._require_finite(record)
        self.policy.optimizer.step()
        return record

    def _require_finite(self, record: dict[str, float]) -> None:
        for name, value in record.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"train/{name} is {value} at step {self.num_timesteps}: look for extreme "
                    "rewards or observations, or lower the learning rate"
                )

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn for `total_timesteps` steps of all environments together; see SB3."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "reference_policy"], []
