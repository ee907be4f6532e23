"""The learners; each leaves a `DepthRouter` and has SB3's `predict`."""

from typing import Any

from agents.grpo import GRPO, GRPOPolicyNetwork, SharedPolicyNetwork

__all__ = [
    "GRPO",
    "GRPOPolicyNetwork",
    "GRPORouter",
    "SharedPolicyNetwork",
    "SupervisedClassificationRouter",
    "router_from_model",
]


def __getattr__(name: str) -> Any:
    # On first use: GRPO works on any environment, and importing it must not import maw_gym.
    if name in ("GRPORouter", "router_from_model"):
        from agents import export

        return getattr(export, name)
    if name == "SupervisedClassificationRouter":
        from agents.supervised import SupervisedClassificationRouter

        return SupervisedClassificationRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
