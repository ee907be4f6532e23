"""GRPO for Stable-Baselines3: works on any environment of one-step episodes, discrete actions."""

from agents.grpo.grpo import GRPO
from agents.grpo.networks import SharedEncoder, StateEncoder
from agents.grpo.policies import (
    CnnPolicy,
    GRPOPolicyNetwork,
    MlpPolicy,
    MultiInputPolicy,
    SharedPolicy,
    SharedPolicyNetwork,
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
