"""DepthRouter: what every learner leaves behind, a plain network from observation to depth."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor, nn

from maw_gym import files
from maw_gym.errors import InputError, expanded, one_of, shown
from maw_gym.tables.depth_table import checked_blocks

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class DepthRouter(nn.Module):
    """A multilayer perceptron over standardised observations.

    It takes the whole observation and has D outputs, or is `shared` by the depths: then it takes
    the features of one depth and has one output, the depth's score, to which each depth adds a bias
    of its own.

    Args:
        layers: weight (out, in) and bias (out,) of each layer; the last has D outputs, or if shared
            one row of weights (1, in) and biases (D,).
        activation: between the layers, "relu" or "tanh".
        mean: (O,), subtracted from the observation.
        scale: (O,), multiplies the difference.
        observation: blocks of the observation, in order.
        settings: JSON values saved along: the learner, its data, the encoder's fingerprint.
        limit: standardised numbers are clipped to [-limit, limit]; infinity is none.
        shared: whether one network scores every depth, see `depth_features`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        activation: str,
        mean: Tensor,
        scale: Tensor,
        observation: Sequence[str],
        settings: Mapping[str, Any],
        limit: float = math.inf,
        shared: bool = False,
    ) -> None:
        super().__init__()
        one_of("activation", activation, tuple(ACTIVATIONS))
        self.activation, self.limit, self.shared = activation, float(limit), shared
        self.observation = checked_blocks(observation)
        self.settings = dict(settings)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("scale", scale.detach().clone())
        self.depths = layers[-1][1].numel() if layers else 0
        width = self.inputs = mean.numel()
        if shared:
            if not self.depths or width % self.depths:
                raise InputError(
                    f"a shared router needs equally many numbers of each depth, got {width} for"
                    f" {self.depths}"
                )
            width = 3 * width // self.depths
        modules: list[nn.Module] = []
        for row, (weight, bias) in enumerate(layers):
            outputs = 1 if shared and row == len(layers) - 1 else bias.numel()
            if weight.shape != (outputs, width) or mean.shape != scale.shape or mean.ndim != 1:
                raise InputError(
                    f"router layers do not fit: weight {tuple(weight.shape)} and bias"
                    f" {tuple(bias.shape)} after {width} numbers"
                )
            linear = nn.Linear(width, outputs, device="meta")
            linear.weight = nn.Parameter(weight.detach().clone())
            linear.bias = nn.Parameter(bias.detach().clone())
            modules += [linear, ACTIVATIONS[activation]()]
            width = outputs
        self.network = nn.Sequential(*modules[:-1])

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, in order."""
        return [module for module in self.network if isinstance(module, nn.Linear)]

    def forward(self, observation: Tensor) -> Tensor:
        """Logits (B, D) of observations (B, O)."""
        standard = ((observation - self.mean) * self.scale).clamp(-self.limit, self.limit)
        if not self.shared:
            return cast(Tensor, self.network(standard))
        features: Tensor = self.network[:-1](depth_features(standard, self.depths))
        last = self.linears[-1]
        return features @ last.weight[0] + last.bias  # (B, D, W) -> (B, D)

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[np.float32],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Depths (B,) of observations (B, O), or one depth of one observation (O,).

        The signature is that of Stable-Baselines3's algorithms; a router has no state. A sampled
        depth (`deterministic=False`) comes from torch's global generator, as in SB3.
        """
        del state, episode_start
        logits = self(torch.tensor(observation, dtype=torch.float32, device=self.mean.device))
        if deterministic:
            return logits.argmax(-1).cpu().numpy(), None
        return torch.distributions.Categorical(logits=logits).sample().cpu().numpy(), None


class ModelRouter:
    """A model of Stable-Baselines3 in the place of a `DepthRouter`."""

    def __init__(self, model: Any, observation: tuple[str, ...], settings: dict[str, Any]) -> None:
        self.model, self.observation, self.settings = model, observation, settings
        actions = getattr(model, "action_space", None)
        seen = getattr(model, "observation_space", None)
        if not isinstance(actions, Discrete) or actions.start != 0 or not isinstance(seen, Box):
            raise InputError(
                f"depths are Discrete actions from 0; this model has {shown(actions)} and observes"
                f" {shown(seen)}, not a Box"
            )
        self.inputs, self.depths = int(np.prod(seen.shape)), int(actions.n)

    def predict(self, observation: NDArray[np.float32]) -> tuple[NDArray[np.int64], None]:
        """Depths (B,) of observations (B, O)."""
        if not len(observation):
            return np.zeros(0, np.int64), None
        return np.asarray(self.model.predict(observation, deterministic=True)[0], np.int64), None

    def to(self, device: torch.device | str) -> Self:
        """Itself: a model stays where it is."""
        del device
        return self


def depth_features(observation: Tensor, depths: int) -> Tensor:
    """What a shared network sees of each depth: (B, D, 3 F) of observations (B, F D).

    Its own numbers, how far they are above their mean over depths, and how far below their largest:
    a depth is good or bad beside the others. A network of these features is permutation-equivariant
    (Zaheer et al. 2017, arXiv:1703.06114).
    """
    own = observation.unflatten(-1, (-1, depths)).transpose(-1, -2)  # (B, F D) -> (B, D, F)
    return torch.cat((own, own - own.mean(-2, keepdim=True), own - own.amax(-2, keepdim=True)), -1)


def save_router(path: Path, router: DepthRouter) -> None:
    """Write a router's weights and settings as one safetensors file."""
    tensors = {"mean": router.mean, "scale": router.scale}
    for row, linear in enumerate(router.linears):
        tensors |= {f"layers.{row}.weight": linear.weight, f"layers.{row}.bias": linear.bias}
    settings = {
        "activation": router.activation,
        "limit": router.limit if math.isfinite(router.limit) else None,
        "observation": list(router.observation),
        "shared": router.shared,
        "router": router.settings,
    }
    files.write(path, tensors, "router", settings)


def load_router(path: Path) -> DepthRouter:
    """Read a router; no code in the file is run."""
    path = expanded(path)
    settings, tensors = files.read(path, "router")
    count = sum(name.endswith(".bias") for name in tensors)
    shapes: dict[str, tuple[int | None, ...]] = {"mean": (None,), "scale": (None,)}
    for row in range(max(count, 1)):
        shapes |= {f"layers.{row}.weight": (None, None), f"layers.{row}.bias": (None,)}
    files.check_tensors(path, tensors, shapes)
    try:
        limit = math.inf if settings["limit"] is None else float(settings["limit"])
        if not limit > 0 or settings["limit"] == math.inf:
            raise ValueError(f"limit {limit}")
        return DepthRouter(
            [(tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in range(count)],
            str(settings["activation"]),
            tensors["mean"],
            tensors["scale"],
            list(settings["observation"]),
            dict(settings["router"]),
            limit,
            bool(settings["shared"]),
        ).eval()
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:  # InputError among them
        raise InputError(f"{path}: incomplete router settings ({error})") from None
