"""What can be known to be wrong with GRPO's settings before learning starts."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from pydantic import ValidationError

from agents.grpo.settings import DEFAULTS, GRPOSettings

if TYPE_CHECKING:
    from agents.grpo.grpo import GRPO


def check_settings(model: "GRPO") -> None:
    """Raise a ValueError of one line for the first setting that cannot work."""
    values: dict[str, Any] = {}
    for field in fields(GRPOSettings):
        value = getattr(model, field.name)
        values[field.name] = value.item() if isinstance(value, np.generic) else value
    if callable(model.learning_rate):  # a schedule is known only as learning goes on
        values["learning_rate"] = DEFAULTS.learning_rate
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
    # A loaded model may have no environment yet, only the number of the one it was saved with
    if model.advantage != "critic" and model.env is not None and model.n_envs % model.group_size:
        raise ValueError(
            f"{model.n_envs} environments do not divide into groups of {model.group_size}: change "
            "group_size or the number of environments"
        )
