"""Makes the environments known to Gymnasium."""

from typing import Final

import gymnasium as gym

ENVIRONMENT_ID: Final = "MAWDepth-v0"


def register_environments() -> None:
    """Register `MAWDepth-v0` in its scalar and its vector form; again is harmless."""
    if ENVIRONMENT_ID not in gym.registry:
        gym.register(
            id=ENVIRONMENT_ID,
            entry_point="maw_gym.envs.environment:GRPOEnvironment",
            vector_entry_point="maw_gym.envs.vector_environment:GRPOVectorEnvironment",
        )
