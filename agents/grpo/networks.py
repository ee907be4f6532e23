"""What the policies are built of: encoders of observations, and heads of a shared policy."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import nn


class Standardised(BaseFeaturesExtractor):
    """Base of encoders that begin with `(observation - mean) * scale`, clipped.

    Args:
        observation_space: Any space that can be flattened (Box, Discrete, ...).
        features_dim: Width of what comes out.
        mean: Subtracted from the flat observation (O numbers); None: nothing is.
        scale: Multiplies the difference (O numbers); None: nothing does. Observations whose numbers
            hardly differ between contexts teach a network little until they are standardised.
        limit: Standardised numbers are clipped to [-limit, limit]: one outlier would drive the
            logits so far that probability ratios overflow.
    """

    mean: th.Tensor
    scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int,
        mean: Sequence[float] | None,
        scale: Sequence[float] | None,
        limit: float,
    ) -> None:
        super().__init__(observation_space, features_dim)
        self.inputs = get_flattened_obs_dim(observation_space)
        self.limit = limit
        self.register_buffer("mean", _numbers(mean, 0.0, self.inputs, "mean"))
        self.register_buffer("scale", _numbers(scale, 1.0, self.inputs, "scale"))

    def standardised(self, observations: th.Tensor) -> th.Tensor:
        """(B, *observation) float -> (B, O)."""
        return ((observations.flatten(1) - self.mean) * self.scale).clamp(-self.limit, self.limit)


class StateEncoder(Standardised):
    """The encoder that policy and value head share: observation -> 512 -> 256 -> 128.

    Args:
        observation_space: Any space that can be flattened (Box, Discrete, ...).
        widths: Widths of the layers; each is followed by the activation.
        activation_fn: Class of the activation.
        mean: See Standardised.
        scale: See Standardised.
        limit: See Standardised.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        widths: tuple[int, ...] = (512, 256, 128),
        activation_fn: type[nn.Module] = nn.ReLU,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        limit: float = math.inf,
    ) -> None:
        super().__init__(observation_space, widths[-1], mean, scale, limit)
        # output_dim < 1: no further layer after the last activation
        self.layers = nn.Sequential(*create_mlp(self.inputs, -1, list(widths), activation_fn))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """(B, *observation) float -> (B, widths[-1])."""
        features: th.Tensor = self.layers(self.standardised(observations))
        return features


class SharedEncoder(Standardised):
    """One small network that all actions share: F numbers of each action -> features of each.

    An action is seen by its own numbers, by how far they are above their mean over actions, and by
    how far they are below their largest. So what is learned of one action serves all, and the
    features do not depend on the order of actions: a permutation-equivariant network as in Deep
    Sets (Zaheer et al. 2017, arXiv:1703.06114), on what Vowpal Wabbit calls action-dependent
    features.

    Args:
        observation_space: Space of F D numbers: the first of every action, the second of every
            action, and so on.
        actions: D.
        widths: Widths of the layers; each is followed by the activation.
        activation_fn: Class of the activation.
        mean: See Standardised; equal for all actions, or what differs between them is lost.
        scale: See Standardised; likewise.
        limit: See Standardised.

    Raises:
        ValueError: The observation has not equally many numbers for every action.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        widths: tuple[int, ...] = (32, 32),
        activation_fn: type[nn.Module] = nn.ReLU,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        limit: float = math.inf,
    ) -> None:
        super().__init__(observation_space, widths[-1], mean, scale, limit)
        if self.inputs % actions:
            raise ValueError(
                f"a network shared by actions needs equally many numbers for each of the {actions};"
                f" the observation has {self.inputs}: take MlpPolicy"
            )
        self.actions = actions
        layers = create_mlp(3 * self.inputs // actions, -1, list(widths), activation_fn)
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """(B, F D) float -> (B, D, widths[-1])."""
        # (B, F D) -> (B, D, F)
        own = self.standardised(observations).unflatten(1, (-1, self.actions)).transpose(1, 2)
        others = own - own.mean(1, keepdim=True), own - own.amax(1, keepdim=True)
        features: th.Tensor = self.layers(th.cat((own, *others), -1))
        return features


def _numbers(values: Sequence[float] | None, default: float, size: int, name: str) -> th.Tensor:
    if values is None:
        return th.full((size,), default)
    if len(values) != size:
        raise ValueError(f"{name} has {len(values)} numbers for observations of {size}")
    return th.tensor(values, dtype=th.float32)


class ActionHead(nn.Linear):
    """Logits (B, D) of features (B, D, W): one row of weights for all, a bias for each action."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__(width, 1, bias=False)
        self.bias = nn.Parameter(th.zeros(actions))

    def forward(self, features: th.Tensor) -> th.Tensor:
        """(B, D, W) -> (B, D)."""
        return (features @ self.weight[0]) + self.bias


class MeanHead(nn.Linear):
    """Value (B, 1) of features (B, D, W): linear in their mean over actions."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """(B, D, W) -> (B, 1)."""
        return super().forward(features.mean(1))
