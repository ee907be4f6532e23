"""GRPO for Stable-Baselines3: works on any environment of Gymnasium or Stable-Baselines3."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maw_gym.agents.grpo.groups import Groups, make_groups
    from maw_gym.agents.grpo.grpo import GRPO
    from maw_gym.agents.grpo.policies import (
        CnnPolicy,
        GRPOPolicyNetwork,
        MlpPolicy,
        MultiInputPolicy,
        SharedEncoder,
        SharedPolicy,
        SharedPolicyNetwork,
        StateEncoder,
    )

__all__ = [
    "GRPO",
    "CnnPolicy",
    "GRPOPolicyNetwork",
    "Groups",
    "MlpPolicy",
    "MultiInputPolicy",
    "SharedEncoder",
    "SharedPolicy",
    "SharedPolicyNetwork",
    "StateEncoder",
    "make_groups",
]


def __getattr__(name: str) -> Any:
    # On first use: settings.py is imported where nothing is trained.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"GRPO": "grpo", "Groups": "groups", "make_groups": "groups"}.get(name, "policies")
    return getattr(import_module(f"{__name__}.{module}"), name)
