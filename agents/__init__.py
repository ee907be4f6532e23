"""The learners; each leaves a `DepthRouter` and has SB3's `predict`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maw_gym.agents.grpo import GRPO, GRPOPolicyNetwork, SharedPolicyNetwork
    from maw_gym.agents.networks import GRPORouter
    from maw_gym.agents.supervised import SupervisedClassificationRouter

__all__ = [
    "GRPO",
    "GRPOPolicyNetwork",
    "GRPORouter",
    "SharedPolicyNetwork",
    "SupervisedClassificationRouter",
]


def __getattr__(name: str) -> Any:
    # On first use: settings need no torch, and importing GRPO must not import maw_gym.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {"GRPORouter": "networks", "SupervisedClassificationRouter": "supervised"}
    return getattr(import_module(f"{__name__}.{modules.get(name, 'grpo')}"), name)
