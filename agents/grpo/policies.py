"""Policies for GRPO; PPO and A2C of Stable-Baselines3 accept the same classes."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn


class StateEncoder(BaseFeaturesExtractor):
    """The encoder that policy and value head share: observation -> 512 -> 256 -> 128.

    Args:
        observation_space: Any space that can be flattened (Box, Discrete, ...).
        widths: Widths of the layers; each is followed by the activation.
        activation_fn: Class of the activation.
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
        observation_space: spaces.Space,
        widths: tuple[int, ...] = (512, 256, 128),
        activation_fn: type[nn.Module] = nn.ReLU,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        limit: float = math.inf,
    ) -> None:
        super().__init__(observation_space, features_dim=widths[-1])
        inputs = get_flattened_obs_dim(observation_space)
        # output_dim < 1: no further layer after the last activation
        layers = create_mlp(inputs, -1, list(widths), activation_fn)
        self.layers = nn.Sequential(*layers)
        self.limit = limit
        self.register_buffer("mean", _numbers(mean, 0.0, inputs, "mean"))
        self.register_buffer("scale", _numbers(scale, 1.0, inputs, "scale"))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """(B, *observation) float -> (B, widths[-1])."""
        standard = (observations.flatten(1) - self.mean) * self.scale
        return self.layers(standard.clamp(-self.limit, self.limit))


def _numbers(values: Sequence[float] | None, default: float, size: int, name: str) -> th.Tensor:
    if values is None:
        return th.full((size,), default)
    if len(values) != size:
        raise ValueError(f"{name} has {len(values)} numbers for observations of {size}")
    return th.tensor(values, dtype=th.float32)


class GRPOPolicyNetwork(ActorCriticPolicy):
    """Actor-critic of one shared encoder (512-256-128), a policy head (64) and a value head (64).

    There is no dropout: between sampling and the loss it would change the probabilities and make
    the ratios explode. ReLU with SB3's orthogonal initialisation: gain sqrt(2) inside, 0.01 on the
    logits, so that the first policy is close to uniform.

    Args:
        observation_space: Observation space.
        action_space: Action space.
        lr_schedule: Learning rate as a function of the remaining progress.
        net_arch: Hidden widths of the two heads, `{"pi": [64], "vf": [64]}` unless told.
        activation_fn: Activation of the heads, and of a StateEncoder.
        features_extractor_class: The shared encoder.
        features_extractor_kwargs: Its arguments besides the observation space.
        **kwargs: The remaining arguments of SB3's ActorCriticPolicy.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = StateEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if features_extractor_class is StateEncoder:
            own = {"activation_fn": activation_fn}
            features_extractor_kwargs = own | (features_extractor_kwargs or {})
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": [64], "vf": [64]} if net_arch is None else net_arch,
            activation_fn=activation_fn,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            **kwargs,
        )

    def actor_layers(self) -> list[nn.Linear]:
        """Linear layers from the flat observation to the logits, in order.

        The policy is exactly these layers with `activation_name` between them (none after the
        last), over the `(observation - mean) * scale` of a StateEncoder clipped to its limit: all
        that is needed to export it as a plain MLP.

        Returns:
            The layers themselves, not copies: by default obs-512, 512-256, 256-128, 128-64, 64-D.

        Raises:
            TypeError: The features extractor is not a plain MLP.
        """
        if not isinstance(self.pi_features_extractor, StateEncoder | FlattenExtractor):
            raise TypeError(
                f"{type(self.pi_features_extractor).__name__} is not a plain MLP: actor_layers() "
                "needs StateEncoder or FlattenExtractor as the features extractor"
            )
        parts = (self.pi_features_extractor, self.mlp_extractor.policy_net, self.action_net)
        return [module for part in parts for module in part.modules() if type(module) is nn.Linear]

    @property
    def activation_name(self) -> str:
        """Lower-case name of the activation between the layers: "relu" unless told otherwise."""
        return self.activation_fn.__name__.lower()


def actor_log_probs(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """Log-probabilities (B, D) of all D discrete actions, without the critic's work."""
    distribution = cast(CategoricalDistribution, policy.get_distribution(observations))
    return distribution.distribution.logits  # normalised by torch: they are log-probabilities


def actor_critic(
    policy: ActorCriticPolicy, observations: PyTorchObs
) -> tuple[th.Tensor, th.Tensor]:
    """Log-probabilities (B, D) of all D discrete actions, and values (B,), encoding once."""
    if not policy.share_features_extractor:
        return actor_log_probs(policy, observations), policy.predict_values(observations).flatten()
    features = cast(th.Tensor, policy.extract_features(observations))
    latent_pi, latent_vf = policy.mlp_extractor(features)
    return policy.action_net(latent_pi).log_softmax(-1), policy.value_net(latent_vf).flatten()


MlpPolicy = GRPOPolicyNetwork
CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy
