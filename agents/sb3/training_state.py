"""Everything that a training in progress consists of, as tensors and JSON, and back.

Taken between two rollouts, after the update: there is no rollout buffer to keep, and the values
that the update has recorded wait in the logger, since Stable-Baselines3 writes them after the next
rollout.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

from maw_gym.checkpoints import Checkpoint, optimizer_state, restore_optimizer

# Counters of the algorithms; GRPO's reference policy is renewed by the second.
COUNTERS = ("_n_updates", "_rollouts_since_renewal", "_episode_num", "_current_progress_remaining")
NETWORKS = ("policy", "reference_policy")


def training_state(model: OnPolicyAlgorithm) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON values that `restore_training` needs."""
    monitor = _monitor(model)
    assert isinstance(model._last_obs, np.ndarray)
    assert model._last_episode_starts is not None
    assert model.ep_info_buffer is not None
    tensors: dict[str, Tensor] = {}
    for network in _networks(model):
        weights = getattr(model, network).state_dict()
        kept = {name: weights[name] for name in set(aliases(weights).values())}
        tensors |= {f"{network}/{name}": value for name, value in kept.items()}
    gathered, groups = optimizer_state(model.policy.optimizer)
    tensors |= gathered
    episodes = list(model.ep_info_buffer)
    arrays = {
        "last/observations": model._last_obs,
        "last/starts": model._last_episode_starts,
        "monitor/returns": monitor.episode_returns,
        "monitor/lengths": monitor.episode_lengths,
        "episodes/r": np.array([episode["r"] for episode in episodes], np.float32),
        "episodes/l": np.array([episode["l"] for episode in episodes], np.int32),
        "episodes/t": np.array([episode["t"] for episode in episodes], np.float64),
    }
    tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    generator_tensors, generators = _generators(model)
    logger = model.logger
    state = {
        "num_timesteps": model.num_timesteps,
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "groups": groups,
        "environment": model.get_env().env_method("get_state")[0],  # type: ignore[union-attr]
        "episode_count": monitor.episode_count,
        "generators": generators,
        "pending": [
            [name, _plain(value), logger.name_to_count[name], logger.name_to_excluded[name]]
            for name, value in logger.name_to_value.items()
        ],
    }
    return tensors | generator_tensors, state


def restore_training(model: OnPolicyAlgorithm, checkpoint: Checkpoint) -> None:
    """Put a freshly built algorithm where another one was."""
    tensors, state = checkpoint.tensors, checkpoint.state
    with torch.no_grad():
        for network in _networks(model):
            weights = getattr(model, network).state_dict()
            for name in set(aliases(weights).values()):
                weights[name].copy_(tensors[f"{network}/{name}"])
    restore_optimizer(model.policy.optimizer, tensors, state["groups"])

    model.num_timesteps = state["num_timesteps"]
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model._last_obs = tensors["last/observations"].numpy()
    model._last_episode_starts = tensors["last/starts"].numpy()
    monitor = _monitor(model)
    monitor.env_method("set_state", state["environment"])
    monitor.episode_returns = tensors["monitor/returns"].numpy()
    monitor.episode_lengths = tensors["monitor/lengths"].numpy()
    monitor.episode_count = state["episode_count"]
    # Numbers of the types VecMonitor gives, so that their mean is computed as before.
    columns = [tensors[f"episodes/{name}"].numpy() for name in "rlt"]
    assert model.ep_info_buffer is not None
    model.ep_info_buffer.clear()
    model.ep_info_buffer.extend(
        {"r": r, "l": length, "t": float(t)} for r, length, t in zip(*columns, strict=True)
    )
    for name, value, count, excluded in state["pending"]:
        model.logger.name_to_value[name] = value
        model.logger.name_to_count[name] = count
        model.logger.name_to_excluded[name] = tuple(excluded)
    # Last: building the algorithm has seeded them.
    _restore_generators(model, tensors, state["generators"])


def aliases(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The name under which each tensor of a state dict is kept."""
    first: dict[int, str] = {}
    return {name: first.setdefault(value.data_ptr(), name) for name, value in weights.items()}


def first_not_finite(network: nn.Module) -> str | None:
    """Name of the first parameter that holds a number that is not finite."""
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            return name
    return None


def _networks(model: OnPolicyAlgorithm) -> list[str]:
    return [name for name in NETWORKS if hasattr(model, name)]


def _monitor(model: OnPolicyAlgorithm) -> VecMonitor:
    monitor = model.get_env()
    assert isinstance(monitor, VecMonitor)
    return monitor


def _plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python; exact, also for float32."""
    return value.item() if hasattr(value, "item") else value


def _generators(model: OnPolicyAlgorithm) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"generator/torch": torch.get_rng_state()}
    if model.device.type == "cuda":
        tensors["generator/cuda"] = torch.cuda.get_rng_state(model.device)
    kind, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - SB3 uses it
    return tensors, {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(key).tolist(), position, has_gauss, gauss],
        "action_space": model.action_space.np_random.bit_generator.state,
    }


def _restore_generators(
    model: OnPolicyAlgorithm, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.array(key, np.uint32), *rest))  # noqa: NPY002
    model.action_space.np_random.bit_generator.state = state["action_space"]
    torch.set_rng_state(tensors["generator/torch"])
    if "generator/cuda" in tensors and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator/cuda"], model.device)
