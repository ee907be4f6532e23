"""GRPO for Stable-Baselines3: works on any environment of one-step episodes, discrete actions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.grpo.grpo import GRPO
    from agents.grpo.policies import (
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
    "MlpPolicy",
    "MultiInputPolicy",
    "SharedEncoder",
    "SharedPolicy",
    "SharedPolicyNetwork",
    "StateEncoder",
]


def __getattr__(name: str) -> Any:
    # On first use: settings.py is imported where nothing is trained.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'grpo' if name == 'GRPO' else 'policies'}"), name)
