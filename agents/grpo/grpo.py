"""GRPO as a Stable-Baselines3 algorithm.

Group Relative Policy Optimization, after Shao et al. 2024 (DeepSeekMath, arXiv:2402.03300).

Kept: advantages relative to a group of episodes from one start, of their outcomes or of what
follows each step, the clipped ratio to the policy that acted, several passes over a rollout, the KL
to a reference as a term of the loss.
Different from DeepSeekMath: a token is a step of the environment. Outcomes are sums of discounted
rewards. An ended episode has rewards of 0 in the process advantages, which are scaled once and not
step by step. All steps count alike (theirs is `loss_average="episode"`). The reference is renewed
every few rollouts (`reference_interval=None` keeps the first), the KL is exact (theirs is "k3").
Different from TRL's GRPOTrainer: a group's deviation has ddof 0 and 1e-8 added to it (TRL: ddof 1
and 1e-4), so groups of 8 have advantages 1.07 times as large; there is an entropy bonus; the KL is
in the loss by default (TRL's `beta` is 0).
Added: comparison with similar states after GiGPO (Feng et al. 2025), the mean-only advantage of
Dr. GRPO (Liu et al. 2025), asymmetric clipping of DAPO (Yu et al. 2025), a critic's generalised
advantage estimation where there are no groups, and the ratio to the reference: an action that it
all but excludes has an unbounded ratio.
"""

import math
import warnings
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
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from maw_gym.agents.grpo import losses
from maw_gym.agents.grpo.buffers import (
    GRPODictRolloutBuffer,
    GRPORolloutBuffer,
    Rollout,
    require_memory,
)
from maw_gym.agents.grpo.groups import (
    check_environment,
    refuse_vector_environments,
    told,
    with_groups,
)
from maw_gym.agents.grpo.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    SharedPolicy,
    evaluate,
    refuse_running_statistics,
)
from maw_gym.agents.grpo.settings import BATCH, CLIPPING, DEFAULTS, SAMPLES, check


class GRPO(OnPolicyAlgorithm):
    """Group Relative Policy Optimization.

    The loss of a batch is policy loss + kl_coef * KL + vf_coef * value loss - ent_coef * entropy.

    Groups of episodes of several steps begin together: environments are reset before a rollout
    where they do not. An episode counts when all of its group have ended in the rollout, by
    termination or truncation alike; the first ones also where the rollout's end cuts them. So
    n_steps is best several times the length of an episode, and never less than one.

    Args:
        policy: MlpPolicy, MultiInputPolicy, CnnPolicy, SharedPolicy, or a class.
        env: The environment to learn from (if registered in Gymnasium, can be str). For advantages
            within groups, one whose neighbours start alike, such as `make_groups("CartPole-v1")`.
        learning_rate: Of Adam, may be a function of the remaining progress (1 to 0).
        n_steps: Steps of each environment per rollout. None: 1,024 samples, with groups episodes.
        batch_size: Samples per gradient step, across groups; None: the whole rollout at once;
            "auto": 512 with groups, else 64.
        n_epochs: Passes over each rollout.
        advantage: "outcome": for every step the episode's return minus the mean of its group, over
            the group's standard deviation (DeepSeekMath). "group_mean": without the division (Dr.
            GRPO). "process": what follows the step, compared with the group at every step
            (losses.process_advantages). "state": generalised advantage estimation where a state's
            value is what followed the states most like it in all other episodes that its group has
            in the rollout (losses.similar_state_values). Of one-step episodes "process" and "state"
            are "outcome". "critic": generalised advantage estimation with the value head, which
            alone is trained by it. "auto": "state" with groups, else "critic", with a warning.
        group_size: Environments per group, at least 2; None: the environment's attribute. Where it
            has none, a DummyVecEnv or SubprocVecEnv is put in such groups.
        ratio: Denominator of the probability ratio: "old", the policy that acted, or "reference".
        clip_range: Ratios are clipped to 1 - and 1 + this, also as a function; None: not at all.
        clip_range_high: Upper range where it differs from the lower (DAPO), also as a function.
        kl: Penalty to the reference: "exact", over all actions, or a sampled estimate "k1", "k2",
            "k3" (losses.sampled_kl says what their gradients do; that of k1 does harm).
        kl_coef, ent_coef, vf_coef: Of the KL penalty, the entropy bonus, the value loss ("critic").
        reference_interval: Rollouts after which the reference becomes a copy of the policy; None
            keeps the initial policy for ever.
        max_grad_norm: Largest norm of the gradient, which is scaled down to it.
        gamma, gae_lambda: Discount of rewards; of generalised advantage estimation ("state" and
            "critic").
        loss_average: "step": all steps of a rollout count alike in the policy loss. "episode": all
            episodes do, so that a step of a long one counts less (DeepSeekMath); of groups alone.
        normalize_advantage: Whether the advantages of "critic" lose their mean over the rollout and
            are divided by their deviation; None: where episodes have several steps.
        target_kl: Where a batch is 1.5 times as far from the policy that acted (train/approx_kl),
            the rollout's passes end; None: never.
        clip_range_vf: How far the critic's values may move from those of the rollout, as PPO's,
            also as a function; None: as far as they do.
        use_sde, sde_sample_freq: State-dependent exploration of Box actions, as PPO's.
        stats_window_size, tensorboard_log, policy_kwargs, verbose, seed, device: As PPO's.
        _init_setup_model: As PPO's.

    Raises:
        ValueError: A setting out of its range, another action space, batch normalisation, groups
            that are missing, do not divide the environments or (in learning) start differently.
        FloatingPointError: When learning: a reward, loss or gradient is not finite, or what "state"
            compares. The policy keeps the parameters from before that gradient step.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "SharedPolicy": SharedPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    batch_size: Any  # "auto" until an environment decides
    rollout_buffer: GRPORolloutBuffer
    reference_policy: ActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = DEFAULTS.learning_rate,
        n_steps: int | None = None,
        batch_size: int | str | None = "auto",
        n_epochs: int = DEFAULTS.n_epochs,
        advantage: str = DEFAULTS.advantage,
        group_size: int | None = None,
        ratio: str = DEFAULTS.ratio,
        clip_range: float | Schedule | None = DEFAULTS.clip_range,
        clip_range_high: float | Schedule | None = DEFAULTS.clip_range_high,
        kl: str = DEFAULTS.kl,
        kl_coef: float = DEFAULTS.kl_coef,
        reference_interval: int | None = DEFAULTS.reference_interval,
        ent_coef: float = DEFAULTS.ent_coef,
        vf_coef: float = DEFAULTS.vf_coef,
        max_grad_norm: float = DEFAULTS.max_grad_norm,
        gamma: float = DEFAULTS.gamma,
        gae_lambda: float = DEFAULTS.gae_lambda,
        loss_average: str = DEFAULTS.loss_average,
        normalize_advantage: bool | None = DEFAULTS.normalize_advantage,
        target_kl: float | None = DEFAULTS.target_kl,
        clip_range_vf: float | Schedule | None = DEFAULTS.clip_range_vf,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
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
            n_steps=n_steps,  # type: ignore[arg-type]
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
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
        self.clip_range_vf = clip_range_vf
        self.kl = kl
        self.kl_coef = kl_coef
        self.reference_interval = reference_interval
        self.loss_average = loss_average
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self._rollouts_since_renewal = 0
        self._settled: set[str] = set()  # what the environment decided: is not saved
        if _init_setup_model:
            self._setup_model()
            self._require_groups()

    def _setup_model(self) -> None:
        # Here, since load() puts the saved settings in place after __init__.
        check(vars(self))
        for name in CLIPPING:  # schedules, as PPO's
            if getattr(self, name) is not None:
                setattr(self, name, FloatSchedule(getattr(self, name)))
        self._settle()
        check_environment(self.env, self.action_space, self.policy_class)
        require_memory(self.observation_space, self.n_steps, self.n_envs)
        samples = self.n_steps * self.n_envs
        steps = self.n_epochs * math.ceil(samples / (self.batch_size or samples))
        if self.clip_range is None and steps > 1:
            warnings.warn(
                f"{steps} gradient steps on each rollout of {samples} samples without clipping"
                " drive the policy away from the one that acted: give clip_range=0.2, or"
                " n_epochs=1 and batch_size=None",
                UserWarning,
                stacklevel=3,
            )
        super()._setup_model()
        refuse_running_statistics(self.policy)
        self._make_buffer()
        if self.use_sde:
            with th.no_grad():  # no tensor of a graph can be copied
                self.policy.reset_noise()
        self.reference_policy = deepcopy(self.policy).requires_grad_(False)
        self.reference_policy.set_training_mode(False)

    def _make_buffer(self) -> None:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        buffer = GRPODictRolloutBuffer if is_dict else GRPORolloutBuffer
        places = (self.n_steps, self.observation_space, self.action_space, self.device)
        names = ["gamma", "gae_lambda", "n_envs", "advantage", "group_size"]
        names += ["loss_average", "normalize_advantage"]
        self.rollout_buffer = buffer(*places, **{name: getattr(self, name) for name in names})

    def _settle(self) -> None:
        """Let the environment decide advantage, group, steps and batch where they are left open."""
        names = ("advantage", "group_size", "n_steps", "batch_size")
        asked = {name: getattr(self, name) for name in names}
        if self.advantage != "critic" and self.env is not None:
            self.env, self.group_size = with_groups(self.env, self.group_size, self.advantage)
            if self.advantage == "auto":
                self.advantage = "critic" if self.group_size is None else "state"
        if self.advantage == "critic" and self.loss_average == "episode":
            raise ValueError(
                "loss_average='episode' needs groups of episodes, and advantage='critic' takes all"
                " steps alike: leave it out"
            )
        grouped = self.advantage not in ("critic", "auto")
        if self.batch_size == "auto":
            self.batch_size = DEFAULTS.batch_size if grouped else BATCH
        if self.n_steps is None:
            self.n_steps = -(-SAMPLES // self.n_envs)
            if grouped:  # they go by whole episodes
                longest = getattr(told(self.env, "spec"), "max_episode_steps", None)
                self.n_steps = max(self.n_steps, longest or 0)
        self._settled = {name for name, value in asked.items() if value != getattr(self, name)}

    def _require_groups(self) -> None:
        """Refuse environments that do not divide into groups; a loaded model may still predict."""
        size = self.group_size
        if self.advantage != "critic" and self.env is not None and size and self.n_envs % size:
            raise ValueError(
                f"{self.n_envs} environments do not divide into groups of {size}: change"
                " group_size or the number of environments"
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Go on with another environment, whose groups decide what was left open; see SB3."""
        super().set_env(env, force_reset)
        for name in self._settled:
            setattr(self, name, "auto" if name in ("advantage", "batch_size") else None)
        self._settle()
        self._make_buffer()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._require_groups()
        if self._last_obs is None:
            self.rollout_buffer.in_step = True  # it resets the environment
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Collect one rollout as SB3 does, of groups in step; see OnPolicyAlgorithm."""
        grouped = self.advantage != "critic"
        if grouped:
            if not self.rollout_buffer.in_step:
                self._last_obs = env.reset()  # type: ignore[assignment]
                self._last_episode_starts = np.ones(env.num_envs, np.bool_)
            # SB3 adds gamma times a value to the reward of a truncated episode. Not gamma is 0
            # meanwhile: a callback may save the model.
            self.policy.predict_values = lambda obs: th.zeros(1, 1)  # type: ignore[method-assign]
        try:
            completed = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            if grouped:
                del self.policy.predict_values
        if not completed:
            # A callback stopped SB3 before it updated _last_obs: learning on from there would pair
            # old observations with rewards for new ones.
            self._last_obs = None
        return completed

    def train(self) -> None:
        """Update the policy with the current rollout, and the reference when its time has come."""
        # Eval mode, as in acting: with dropout the ratios would explode.
        self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        clipping = [
            None if schedule is None else FloatSchedule(schedule)(self._current_progress_remaining)
            for schedule in (getattr(self, name) for name in CLIPPING)
        ]
        rollout = self.rollout_buffer.rollout
        if isinstance(self.action_space, spaces.Discrete):
            with th.no_grad():  # nothing changes the reference in here: once serves all epochs
                reference: Any = self.reference_policy.get_distribution(rollout.observations)
            rollout = rollout._replace(reference_log_probs=reference.distribution.logits)
        history: list[dict[str, float]] = []
        for _ in range(self.n_epochs):
            for batch in rollout.batches(self.batch_size):
                history.append(self._update(batch, *clipping))
                if self._is_far(history[-1]):
                    break
            self._n_updates += 1
            if self._is_far(history[-1]):
                break
        self._rollouts_since_renewal += 1
        if self._rollouts_since_renewal == self.reference_interval:
            self.reference_policy.load_state_dict(self.policy.state_dict())
            self._rollouts_since_renewal = 0
        for name in history[0]:
            values = [record[name] for record in history if name in record]
            self.logger.record(f"train/{name}", np.mean(values))
        self.logger.record("policy/entropy", -np.mean([x["entropy_loss"] for x in history]))
        for name, value in self.rollout_buffer.summary().items():
            self.logger.record(f"train/{name}", value)
        for name, clip in zip(CLIPPING, clipping, strict=True):
            if clip is not None:
                self.logger.record(f"train/{name}", clip)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _is_far(self, record: dict[str, float]) -> bool:
        return self.target_kl is not None and record["approx_kl"] > 1.5 * self.target_kl

    def _update(self, batch: Rollout, *clipping: float | None) -> dict[str, float]:
        """One gradient step, unless target_kl forbids it, and what is logged of it."""
        said = evaluate(self.policy, self.reference_policy, batch, self.advantage == "critic")
        log_prob, reference_log_prob, kl, entropy, values = said
        base = reference_log_prob if self.ratio == "reference" else batch.log_probs
        ratio = (log_prob - base).exp()
        low, high, far = clipping
        terms: dict[str, th.Tensor] = {}
        if values is not None:
            terms["value_loss"] = losses.value_loss(values, batch.returns, batch.values, far)
        terms["policy_loss"] = losses.policy_loss(ratio, batch.advantages, low, high)
        # Logged exactly whatever the penalty is, so that runs of different kinds compare
        terms["kl_reference"] = penalty = kl.mean()
        if self.kl != "exact":
            penalty = losses.sampled_kl(log_prob, reference_log_prob, self.kl).mean()
        terms["entropy_loss"] = -entropy.mean()
        loss = terms["policy_loss"] + self.kl_coef * penalty + self.ent_coef * terms["entropy_loss"]
        if values is not None:
            loss = loss + self.vf_coef * terms["value_loss"]
        terms["loss"] = loss
        if low is not None:
            terms["clip_fraction"] = losses.clip_fraction(ratio, low, high)
        with th.no_grad():  # as PPO's, of the policy that acted
            terms["approx_kl"] = losses.sampled_kl(batch.log_probs, log_prob, "k3").mean()

        # one transfer from the device for all of them
        record = dict(zip(terms, th.stack(list(terms.values())).tolist(), strict=True))
        if self._is_far(record):
            return record
        self.policy.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        record["grad_norm"] = float(norm)
        for name, value in record.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"train/{name} is {value} at step {self.num_timesteps}: look for extreme "
                    "rewards or observations, or lower the learning rate"
                )
        self.policy.optimizer.step()
        return record

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

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        refuse_vector_environments(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_settled", *self._settled]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "reference_policy"], []
