"""What can be known to be wrong with GRPO's settings before learning starts."""

import math
from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces

from agents.grpo import losses

if TYPE_CHECKING:
    from agents.grpo.grpo import GRPO


def check_settings(model: "GRPO") -> None:
    """Raise a ValueError of one line for the first setting that cannot work."""
    for name, choices in (
        ("advantage", losses.ADVANTAGES),
        ("ratio", losses.RATIOS),
        ("kl", losses.KLS),
    ):
        if getattr(model, name) not in choices:
            raise ValueError(f"{name}={getattr(model, name)!r}: choose one of {choices}")
    for name in ("n_steps", "n_epochs", "batch_size", "reference_interval"):
        value = getattr(model, name)
        if value is None and name in ("batch_size", "reference_interval"):
            continue
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number from 1")
    for name in ("kl_coef", "ent_coef", "vf_coef"):
        value = getattr(model, name)
        if value is None or not 0.0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: must be a finite number from 0")
    rate = model.learning_rate
    if not callable(rate) and not 0.0 < rate < math.inf:
        raise ValueError(f"learning_rate={rate!r}: must be a finite number above 0")
    for name in ("max_grad_norm", "clip_range", "clip_range_high"):
        value = getattr(model, name)
        if value is None and name != "max_grad_norm":
            continue
        if value is None or not value > 0.0:
            raise ValueError(f"{name}={value!r}: must be above 0")
    if model.clip_range is None and model.clip_range_high is not None:
        raise ValueError(
            f"clip_range_high={model.clip_range_high!r} without clip_range: give both or none"
        )
    space = model.action_space
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise ValueError(f"GRPO needs Discrete actions that start at 0, not {space}")
    if model.advantage != "critic":
        _check_groups(model)


def _check_groups(model: "GRPO") -> None:
    if not isinstance(model.group_size, int | np.integer) or model.group_size < 2:
        raise ValueError(
            f"group_size={model.group_size!r}: advantage={model.advantage!r} compares the members "
            "of a group, which needs a whole number from 2"
        )
    # A loaded model may have no environment yet, only the number of the one it was saved with
    if model.env is not None and model.n_envs % model.group_size:
        raise ValueError(
            f"{model.n_envs} environments do not divide into groups of {model.group_size}: change "
            "group_size or the number of environments"
        )
