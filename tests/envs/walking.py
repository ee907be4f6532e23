"""The hand-made table, walked through in its own order."""

from typing import Any

from hand_made import TABLE

from maw_gym.envs.vector_environment import GRPOVectorEnvironment


def walking(num_envs: int, **changes: Any) -> GRPOVectorEnvironment:
    return GRPOVectorEnvironment(num_envs, table=TABLE, query_order="sequential", **changes)
