"""The network that a learner has, and from a trained model to the router that it leaves behind.

Notation: N queries, O observed numbers, D depths.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from maw_gym.agents.grpo.policies import SharedEncoder, StateEncoder, actor_layers
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.depth_table import DepthTable, is_shared
from maw_gym.tables.task import RetrievalTask

WIDTHS: Final = (512, 256, 128, 64)  # hidden widths, those of GRPO's actor
SHARED_WIDTHS: Final = (32, 32)  # likewise, of a network that all depths share (a test ties both)
LIMIT: Final = 5.0  # standardised numbers are clipped here: one outlier must not rule the logits
SMALLEST_DEVIATION: Final = 1e-6  # numbers that vary less are taken for constant


def standardisation(
    observations: ArrayLike, together: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and reciprocal standard deviation (O,) of training observations (N, O), one of as many
    neighbouring numbers as are `together`, such as those of all depths.
    """
    values = np.asarray(observations)
    kinds = values.reshape(len(values), -1, together)  # (N, O) -> (N, O / together, together)
    mean = kinds.mean(axis=(0, 2), dtype=np.float64).repeat(together)
    deviation = kinds.std(axis=(0, 2), dtype=np.float64).repeat(together)
    varies = deviation > SMALLEST_DEVIATION
    scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def new_router(
    table: DepthTable,
    observation: Sequence[str],
    network: str,
    settings: dict[str, Any],
    generator: torch.Generator,
) -> DepthRouter:
    """An untrained router of the shape and the initialisation of GRPO's actor."""
    depths, shared = table.num_depths, is_shared(network, observation)
    standard = standardisation(table.observation(observation), depths if shared else 1)
    mean, scale = (torch.from_numpy(values) for values in standard)
    hidden = SHARED_WIDTHS if shared else WIDTHS
    inputs = 3 * len(mean) // depths if shared else len(mean)
    widths = (inputs, *hidden, 1 if shared else depths)
    layers = []
    for row, (before, after) in enumerate(pairwise(widths)):
        last = row == len(hidden)
        weight = torch.empty(after, before)
        nn.init.orthogonal_(weight, 0.01 if last else math.sqrt(2), generator=generator)
        layers.append((weight, torch.zeros(depths if last else after)))
    return DepthRouter(layers, "relu", mean, scale, observation, settings, LIMIT, shared)


def router_settings(task: RetrievalTask, learner: str, **facts: Any) -> dict[str, Any]:
    """What a router's file says beside its weights."""
    return {
        "learner": learner,
        "dataset": task.collection.name,
        "encoder": task.embedder.fingerprint(),
        **facts,
    }


class GRPORouter(DepthRouter):
    """The greedy policy of a trained model (GRPO, PPO, A2C) as a router on the CPU.

    Saved and loaded again (`maw_gym.routers.depth_router`) it is a plain `DepthRouter`.

    Args:
        model: an algorithm of Stable-Baselines3 whose policy is an actor-critic made of linear
            layers, such as an MlpPolicy.
        observation: names of the observation's blocks, in order.
        settings: JSON values saved along, see `router_settings`.

    Raises:
        ValueError: another policy, or actions that are not Discrete from 0.
    """

    def __init__(
        self, model: BaseAlgorithm, observation: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        policy, actions = model.policy, model.action_space
        if not isinstance(policy, ActorCriticPolicy):
            raise InputError(
                f"{type(policy).__name__} cannot be exported as a router; train an actor-critic"
                " (GRPO, PPO, A2C), or ask the model itself: RoutedEncoder.from_model"
            )
        if not isinstance(actions, spaces.Discrete) or actions.start != 0:
            raise InputError(f"depths are Discrete actions from 0; this model has {actions}")
        layers = [(linear.weight.cpu(), linear.bias.cpu()) for linear in actor_layers(policy)]
        features = policy.pi_features_extractor
        inputs = layers[0][0].shape[1]
        mean, scale, limit = torch.zeros(inputs), torch.ones(inputs), math.inf
        if isinstance(features, StateEncoder):
            mean, scale, limit = features.mean.cpu(), features.scale.cpu(), features.limit
        shared = isinstance(features, SharedEncoder)
        activation = policy.activation_fn.__name__.lower()
        super().__init__(layers, activation, mean, scale, observation, settings, limit, shared)
        self.eval().requires_grad_(False)
