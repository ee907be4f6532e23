"""DepthRouter: what every learner leaves behind, a plain network from observation to depth."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maw_gym import files
from maw_gym.errors import InputError, checked_int, shown
from maw_gym.files import check_tensors, expanded
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

    Raises:
        InputError: an unknown activation or block, or layers that do not fit.
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
        if activation not in ACTIVATIONS:
            raise InputError(
                f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}"
            )
        self.activation = activation
        self.limit = float(limit)
        self.observation = checked_blocks(observation)
        self.settings = dict(settings)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("scale", scale.detach().clone())
        self.shared = shared
        self.depths = layers[-1][1].numel() if layers else 0
        modules: list[nn.Module] = []
        width = len(mean)
        if shared:
            if not self.depths or width % self.depths:
                raise InputError(
                    f"a shared router needs equally many numbers of each depth, got {width} for"
                    f" {self.depths}"
                )
            width = 3 * width // self.depths
        for row, (weight, bias) in enumerate(layers):
            scores = shared and row == len(layers) - 1
            outputs = 1 if scores else bias.numel()
            if weight.shape != (outputs, width) or bias.ndim != 1:
                raise InputError(
                    f"router layers do not fit: weight {tuple(weight.shape)} and bias"
                    f" {tuple(bias.shape)} after {width} numbers"
                )
            width = outputs
            linear = nn.Linear(weight.shape[1], width, device="meta")
            linear.weight = nn.Parameter(weight.detach().clone())
            linear.bias = nn.Parameter(bias.detach().clone())
            modules += [linear, ACTIVATIONS[activation]()]
        self.network = nn.Sequential(*modules[:-1])

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, in order."""
        return [module for module in self.network if isinstance(module, nn.Linear)]

    def forward(self, observation: Tensor) -> Tensor:
        """Logits (B, D) of observations (B, O)."""
        standard = (observation - self.mean) * self.scale
        standard = standard.clamp(-self.limit, self.limit)
        logits: Tensor
        if not self.shared:
            logits = self.network(standard)
            return logits
        features = self.network[:-1](depth_features(standard, self.depths))
        scores = self.linears[-1]
        logits = features @ scores.weight[0] + scores.bias  # (B, D, W) -> (B, D)
        return logits

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
        given = torch.as_tensor(np.array(observation, np.float32), device=self.mean.device)
        logits = self(given)
        if deterministic:
            depths = logits.argmax(-1)
        else:
            depths = torch.distributions.Categorical(logits=logits).sample()
        return depths.cpu().numpy(), None


def depth_features(observation: Tensor, depths: int) -> Tensor:
    """What a shared network sees of each depth.

    Its own numbers, how far they are above their mean over depths, and how far below their largest:
    a depth is good or bad beside the others. A network of these features is permutation-equivariant
    (Zaheer et al. 2017, arXiv:1703.06114).

    Args:
        observation: (B, F D), the first number of every depth, the second of every depth, ...
        depths: D.

    Returns:
        (B, D, 3 F).
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
        "widths": [len(router.mean), *(len(linear.bias) for linear in router.linears)],
        "router": router.settings,
    }
    files.write(path, tensors, "router", settings)


def load_router(path: Path) -> DepthRouter:
    """Read a router; no code in the file is run.

    Raises:
        InputError: the file is missing, damaged, foreign, or of other shapes than it says.
    """
    path = expanded(path)
    settings, tensors = files.read(path, "router")
    try:
        widths = settings["widths"]
        count = sum(name.endswith(".bias") for name in tensors)
        if not isinstance(widths, list) or len(widths) != count + 1:
            raise ValueError(f"widths {shown(widths)} for {count} layers")
        widths = [checked_int(width, "a width", 1) for width in widths]
        activation, blocks = str(settings["activation"]), list(settings["observation"])
        about = dict(settings["router"])
        limit, shared = settings["limit"], bool(settings["shared"])
        if len(widths) < 2 or (limit is not None and not 0 < float(limit) < math.inf):
            raise ValueError(f"widths {widths}, limit {limit}")
        limit = math.inf if limit is None else float(limit)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: incomplete router settings ({error})") from None
    shapes: dict[str, tuple[int | None, ...]] = {"mean": (widths[0],), "scale": (widths[0],)}
    for row, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        if shared and row == 0:
            inputs = 3 * inputs // widths[-1]
        rows = 1 if shared and row == len(widths) - 2 else outputs
        shapes |= {f"layers.{row}.weight": (rows, inputs), f"layers.{row}.bias": (outputs,)}
    check_tensors(path, tensors, shapes)
    layers = [
        (tensors[f"layers.{row}.weight"], tensors[f"layers.{row}.bias"])
        for row in range(len(widths) - 1)
    ]
    mean, scale = tensors["mean"], tensors["scale"]
    try:
        return DepthRouter(layers, activation, mean, scale, blocks, about, limit, shared).eval()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
