"""The learners; each leaves a `DepthRouter` and has SB3's `predict`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.export import GRPORouter, router_from_model
    from agents.grpo import GRPO, GRPOPolicyNetwork, SharedPolicyNetwork
    from agents.supervised import SupervisedClassificationRouter

__all__ = [
    "GRPO",
    "GRPOPolicyNetwork",
    "GRPORouter",
    "SharedPolicyNetwork",
    "SupervisedClassificationRouter",
    "router_from_model",
]

# On first use: settings need no torch, and importing GRPO must not import maw_gym.
_MODULES = {
    "GRPO": "grpo",
    "GRPOPolicyNetwork": "grpo",
    "GRPORouter": "export",
    "SharedPolicyNetwork": "grpo",
    "SupervisedClassificationRouter": "supervised",
    "router_from_model": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
