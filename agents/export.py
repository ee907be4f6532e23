"""From a trained Stable-Baselines3 model to the router file that every learner leaves behind."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from agents.grpo.policies import GRPOPolicyNetwork, SharedEncoder, Standardised
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter


class GRPORouter(DepthRouter):
    """The policy that GRPO trained, as a router.

    The frozen reference policy and the environment belong to the training and live in
    `agents.grpo.GRPO`; what is left to route with is the policy. Saved and loaded again
    (`maw_gym.routers.depth_router`) it is a plain `DepthRouter`.

    Args:
        model: an algorithm of Stable-Baselines3 whose policy is a GRPOPolicyNetwork.
        observation: names of the observation's blocks, in order.
        settings: JSON values saved along, see `agents.fitting.router_settings`.

    Raises:
        InputError: another policy, or actions that are not Discrete from 0.
    """

    def __init__(
        self, model: BaseAlgorithm, observation: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        actor = _actor(model)
        super().__init__(*actor[:4], observation, settings, actor.limit, actor.shared)


def router_from_model(
    model: BaseAlgorithm, observation: Sequence[str], settings: Mapping[str, Any]
) -> DepthRouter:
    """The greedy policy of a trained model (GRPO, PPO, A2C) as a router on the CPU.

    Args:
        model: its policy is a GRPOPolicyNetwork.
        observation: names of the observation's blocks, in order.
        settings: JSON values saved along, see `agents.fitting.router_settings`.

    Raises:
        InputError: another policy, or actions that are not Discrete from 0.
    """
    actor = _actor(model)
    router = DepthRouter(*actor[:4], observation, settings, actor.limit, actor.shared)
    return router.eval().requires_grad_(False)


class _Actor(NamedTuple):
    """What DepthRouter is made of."""

    layers: list[tuple[Tensor, Tensor]]
    activation: str
    mean: Tensor
    scale: Tensor
    limit: float
    shared: bool


def _actor(model: BaseAlgorithm) -> _Actor:
    policy = model.policy
    if not isinstance(policy, GRPOPolicyNetwork):
        raise InputError(
            f"{type(policy).__name__} cannot be exported as a router; train with"
            " policy GRPOPolicyNetwork"
        )
    actions = model.action_space
    if not isinstance(actions, spaces.Discrete) or actions.start != 0:
        raise InputError(f"depths are Discrete actions from 0; this model has {actions}")
    layers = [(linear.weight.cpu(), linear.bias.cpu()) for linear in policy.actor_layers()]
    features = policy.pi_features_extractor
    inputs = layers[0][0].shape[1]
    mean, scale, limit = torch.zeros(inputs), torch.ones(inputs), math.inf
    if isinstance(features, Standardised):
        mean, scale, limit = features.mean.cpu(), features.scale.cpu(), features.limit
    shared = isinstance(features, SharedEncoder)
    return _Actor(layers, policy.activation_name, mean, scale, limit, shared)
