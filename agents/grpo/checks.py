"""What can be known to be wrong with GRPO's settings before learning starts."""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from gymnasium import spaces
from pydantic import ValidationError
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.grpo.policies import SharedPolicyNetwork
from agents.grpo.settings import DEFAULTS, GRPOSettings

if TYPE_CHECKING:
    from agents.grpo.grpo import GRPO

SCHEDULED: Final = ("learning_rate", "clip_range", "clip_range_high")
HIGHEST: Final = 10.0  # of what a schedule gives
HOW_TO_GROUP: Final = "to_sb3(gym.make_vec(..., group_size=8))"  # of agents.sb3.vec_env


def check_settings(model: "GRPO") -> None:
    """Refuse the first setting that cannot work.

    Raises:
        ValueError: one line with the setting, its value and what it may be.
    """
    values: dict[str, Any] = {}
    for field in fields(GRPOSettings):
        value = getattr(model, field.name)
        if field.name in SCHEDULED and callable(value):
            _check_schedule(field.name, value)
            value = getattr(DEFAULTS, field.name) or DEFAULTS.clip_range
        elif field.name == "group_size" and value is None:
            value = DEFAULTS.group_size  # see settle_groups
        values[field.name] = value.item() if isinstance(value, np.generic) else value
    try:
        GRPOSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # of several settings together
            raise ValueError(str(first["ctx"]["error"])) from None
        raise ValueError(f"{first['loc'][0]}={first['input']!r}: {first['msg']}") from None
    space = model.action_space
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise ValueError(f"GRPO needs Discrete actions that start at 0, not {space}")
    _check_size(model)
    _check_shared(model)


def settle_groups(model: "GRPO") -> None:
    """Set `advantage` and `group_size` to what the environment allows, where they were left open.

    Raises:
        ValueError: advantages within groups were asked for, and there are none.
    """
    size = model.group_size
    if size is None and model.advantage != "critic":
        size = _attribute(model.env, "group_size")
        size = size if isinstance(size, int | np.integer) and size > 1 else None
    if size is None and model.advantage == "auto":
        warnings.warn(
            f"the environment gives no groups: advantage='critic' is taken; {HOW_TO_GROUP} makes"
            " groups that share each observation",
            UserWarning,
            stacklevel=2,
        )
        model.advantage = "critic"
    elif model.advantage == "critic":
        pass
    elif size is None:
        raise ValueError(
            f"advantage={model.advantage!r} needs groups that share each observation, and the"
            f" environment names none: make it by {HOW_TO_GROUP}, or give group_size"
        )
    else:
        model.advantage = "group" if model.advantage == "auto" else model.advantage
        # A loaded model may have no environment yet, only the number of the one it was saved with
        if model.env is not None and model.n_envs % size:
            raise ValueError(
                f"{model.n_envs} environments do not divide into groups of {size}: change"
                " group_size or the number of environments"
            )
    model.group_size = size


def check_network(policy: ActorCriticPolicy) -> None:
    """Refuse layers whose statistics would stay what they were.

    Raises:
        ValueError: the policy has a batch normalisation.
    """
    for name, module in policy.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise ValueError(
                f"{name} is a {type(module).__name__}, whose running statistics GRPO never updates"
                " (it acts and learns in eval mode): take LayerNorm"
            )


def warn_if_unclipped(model: "GRPO") -> None:
    """Warn of several gradient steps per rollout without clipping."""
    samples = model.n_steps * model.n_envs
    steps = model.n_epochs * math.ceil(samples / (model.batch_size or samples))
    if model.clip_range is None and steps > 1:
        warnings.warn(
            f"{steps} gradient steps on each rollout of {samples} samples without clipping drive"
            " the policy away from the one that acted: give clip_range=0.2, or n_epochs=1 and"
            " batch_size=None",
            UserWarning,
            stacklevel=2,
        )


def _check_schedule(name: str, schedule: Callable[[float], Any]) -> None:
    """Refuse what does not give finite numbers from 0; where PPO's schedules end, they may be 0."""
    for progress in (1.0, 0.0):
        value = schedule(progress)
        if not isinstance(value, int | float | np.number) or not 0.0 <= value <= HIGHEST:
            raise ValueError(
                f"{name} is {value!r} where {progress:g} of the training remains: a schedule gives"
                f" numbers from 0 to {HIGHEST:g}"
            )


def _check_size(model: "GRPO") -> None:
    """Refuse a rollout that the machine's memory cannot hold."""
    space = model.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    numbers = sum(get_flattened_obs_dim(part) for part in parts)
    needed = 4 * numbers * model.n_steps * model.n_envs / 2**30
    there = _memory()
    if needed > there:
        raise ValueError(
            f"n_steps={model.n_steps}: rollouts of {model.n_envs} environments with {numbers}"
            f" numbers each need {needed:.3g} GiB, and this machine has {there:.3g}; lower n_steps"
            " or the number of environments"
        )


def _memory() -> float:
    """GiB of this machine; infinity where it does not tell."""
    if not hasattr(os, "sysconf"):  # on Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _check_shared(model: "GRPO") -> None:
    """Refuse a SharedPolicy where the environment says that its numbers are of no action."""
    policy = model.policy_class
    if not (isinstance(policy, type) and issubclass(policy, SharedPolicyNetwork)):
        return
    if _attribute(model.env, "numbers_per_action") == 0:
        raise ValueError(
            "SharedPolicy scores each action by its own numbers, and this environment's"
            f" observation of {model.observation_space.shape} has none: take MlpPolicy"
        )


def _attribute(env: VecEnv | None, name: str) -> Any:
    """What the environment says; None where it says nothing."""
    return env.get_attr(name)[0] if env is not None and env.has_attr(name) else None
