"""Policies for GRPO; PPO and A2C of Stable-Baselines3 accept the same classes.

MlpPolicy (two tanh layers of 64 units each for actor and critic), MultiInputPolicy and CnnPolicy
are Stable-Baselines3's own.

Notation: B samples, O observed numbers, F numbers of each action, D actions, W features.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, kl_divergence
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    MlpExtractor,
    create_mlp,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from maw_gym.agents.grpo import losses
from maw_gym.agents.grpo.buffers import Rollout


class StateEncoder(BaseFeaturesExtractor):
    """The encoder that policy and value head share: observation -> 512 -> 256 -> 128.

    Args:
        observation_space: Any space that can be flattened (Box, Discrete, ...).
        widths: Widths of the layers; each is followed by the activation.
        activation_fn: Class of the activation.
        mean: Subtracted from the flat observation (O numbers); None: nothing is.
        scale: Multiplies the difference (O numbers); None: nothing does.
        limit: Standardised numbers are clipped to [-limit, limit]: one outlier would drive the
            logits so far that probability ratios overflow.
    """

    mean: th.Tensor
    scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        widths: Sequence[int] = (512, 256, 128),
        activation_fn: type[nn.Module] = nn.ReLU,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        limit: float = math.inf,
    ) -> None:
        super().__init__(observation_space, widths[-1])
        self.limit = limit
        numbers = get_flattened_obs_dim(observation_space)
        for name, values, default in (("mean", mean, 0.0), ("scale", scale, 1.0)):
            if values is not None and len(values) != numbers:
                raise ValueError(f"{name} has {len(values)} numbers for observations of {numbers}")
            given = th.full((numbers,), default) if values is None else th.tensor(values)
            self.register_buffer(name, given.float())
        # output_dim < 1: no further layer after the last activation
        layers = create_mlp(self._inputs(numbers), -1, list(widths), activation_fn)
        self.layers = nn.Sequential(*layers)

    def _inputs(self, numbers: int) -> int:
        """Width of the first layer's input, of so many observed numbers."""
        return numbers

    def standardised(self, observations: th.Tensor) -> th.Tensor:
        """(B, *observation) float -> (B, O)."""
        return ((observations.flatten(1) - self.mean) * self.scale).clamp(-self.limit, self.limit)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """(B, *observation) float -> (B, widths[-1])."""
        features: th.Tensor = self.layers(self.standardised(observations))
        return features


class SharedEncoder(StateEncoder):
    """One small network that all actions share: F numbers of each action -> features of each.

    An action is seen by its own numbers, by how far they are above their mean over actions, and by
    how far they are below their largest: a permutation-equivariant network as in Deep Sets (Zaheer
    et al. 2017, arXiv:1703.06114), on what Vowpal Wabbit calls action-dependent features.

    Args:
        observation_space: Space of F D numbers: the first of every action, the second of every
            action, and so on.
        actions: D.
        widths: Widths of the layers; each is followed by the activation.
        **kwargs: See StateEncoder; mean and scale are equal for all actions, or what differs
            between them is lost.

    Raises:
        ValueError: The observation has not equally many numbers for every action.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        actions: int,
        widths: Sequence[int] = (32, 32),
        **kwargs: Any,
    ) -> None:
        self.actions = actions
        super().__init__(observation_space, widths, **kwargs)

    def _inputs(self, numbers: int) -> int:
        if numbers % self.actions:
            raise ValueError(
                f"a network shared by actions needs equally many numbers for each of the"
                f" {self.actions}; the observation has {numbers}: take MlpPolicy"
            )
        return 3 * numbers // self.actions

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """(B, F D) float -> (B, D, widths[-1])."""
        # (B, F D) -> (B, D, F)
        own = self.standardised(observations).unflatten(1, (-1, self.actions)).transpose(1, 2)
        others = own - own.mean(1, keepdim=True), own - own.amax(1, keepdim=True)
        features: th.Tensor = self.layers(th.cat((own, *others), -1))
        return features


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


class GRPOPolicyNetwork(ActorCriticPolicy):
    """Actor-critic of one shared encoder (512-256-128), a policy head (64) and a value head (64).

    Arguments are those of SB3's ActorCriticPolicy: `activation_fn` is also that of a StateEncoder,
    whose other arguments are `features_extractor_kwargs`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = StateEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if features_extractor_class in (StateEncoder, SharedEncoder):
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


class SharedPolicyNetwork(GRPOPolicyNetwork):
    """Actor-critic that scores every action by one shared network (SharedEncoder) and a bias.

    `net_arch` are further hidden widths of the two heads, applied to each action.

    Raises:
        ValueError: The actions are not Discrete, or the observation is no Box of equally many
            numbers for every action.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"a shared network scores Discrete actions, got {action_space}")
        if not isinstance(observation_space, spaces.Box):
            raise ValueError(
                "a shared network wants a Box that has numbers for each of the"
                f" {action_space.n} actions, not {observation_space}: take MlpPolicy or"
                " MultiInputPolicy"
            )
        self._actions = int(action_space.n)
        own = {"actions": self._actions} | (features_extractor_kwargs or {})
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[] if net_arch is None else net_arch,
            features_extractor_kwargs=own,
            **({"features_extractor_class": SharedEncoder} | kwargs),
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = ActionHead(self.mlp_extractor.latent_dim_pi, self._actions)
        self.value_net = MeanHead(self.mlp_extractor.latent_dim_vf)
        if self.ortho_init:
            self.init_weights(self.action_net, gain=0.01)
            self.init_weights(self.value_net, gain=1)
        # Again, now of the heads that are there.
        settings = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **settings)


def evaluate(
    policy: ActorCriticPolicy, reference: ActorCriticPolicy, batch: Rollout, critic: bool
) -> tuple[Any, ...]:
    """Log pi(a), log p(a), KL(pi || p), entropy and, of a critic, values (else None): (B,) each.

    Of Discrete actions the batch has the log-probabilities by the reference p already.
    """
    distribution = policy.get_distribution(batch.observations)
    values = None
    if critic:
        values = batch.spread(policy.predict_values(batch.observations).flatten())
    if isinstance(distribution, CategoricalDistribution):
        logits, references = distribution.distribution.logits, batch.reference_log_probs  # (U, D)
        action = batch.actions[:, None]
        return (
            batch.spread(logits).gather(1, action)[:, 0],  # (U, D) -> (B, D) -> (B,)
            batch.spread(references).gather(1, action)[:, 0],
            batch.spread(losses.exact_kl(logits, references)),
            batch.spread(losses.entropy(logits)),
            values,
        )
    with th.no_grad():
        other = reference.get_distribution(batch.observations)
    kl = kl_divergence(distribution, other)
    log_prob, entropy = distribution.log_prob(batch.actions), distribution.entropy()
    return (
        log_prob,
        other.log_prob(batch.actions),
        kl.sum(dim=1) if kl.dim() > 1 else kl,  # of independent actions
        -log_prob if entropy is None else entropy,  # estimated of squashed actions, as PPO does
        values,
    )


def actor_layers(policy: ActorCriticPolicy) -> list[nn.Linear]:
    """Linear layers from the flat observation to the logits, in order; not copies.

    With the policy's `activation_fn` between them, over the standardised observation, they are the
    policy: all that is needed to export it. Of a shared policy the first takes 3 F numbers of each
    action, and the last has one row of weights and D biases.

    Raises:
        ValueError: It is no plain MLP.
    """
    features, heads = policy.pi_features_extractor, policy.mlp_extractor
    if not isinstance(features, StateEncoder | FlattenExtractor) or type(heads) is not MlpExtractor:
        raise ValueError(
            f"{type(policy).__name__} with a {type(features).__name__} is no plain MLP: take"
            " MlpPolicy, SharedPolicy or GRPOPolicyNetwork"
        )
    parts = (features, heads.policy_net, policy.action_net)
    modules = [module for part in parts for module in part.modules()]
    return [module for module in modules if isinstance(module, nn.Linear)]


def refuse_running_statistics(policy: nn.Module) -> None:
    """Refuse layers whose statistics would stay what they were."""
    for name, module in policy.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise ValueError(
                f"{name} is a {type(module).__name__}, whose running statistics GRPO never"
                " updates (it acts and learns in eval mode): take LayerNorm"
            )


MlpPolicy = ActorCriticPolicy
SharedPolicy = SharedPolicyNetwork
CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy
