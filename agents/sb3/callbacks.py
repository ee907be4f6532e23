"""What happens between rollouts: logging, looking at validation queries, checkpoints.

A checkpoint is taken between two rollouts, after the update: there is no rollout buffer to keep,
and the values that the update has recorded wait in the logger, since Stable-Baselines3 writes them
after the next rollout.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, KVWriter, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from maw_gym.checkpoints import Checkpoint, Checkpoints, optimizer_state, restore_optimizer
from maw_gym.envs.bandit import NDCG, TERMS, Bandit, gap_closed
from maw_gym.envs.rendering import attention_frame
from maw_gym.tables.task import RetrievalTask

MEASURES: Final = (*TERMS, "regret", "random")  # of each episode, in its info
NETWORKS: Final = ("policy", "reference_policy")
# Counters of the algorithms; GRPO's reference policy is renewed by the second.
COUNTERS: Final = ("_n_updates", "_rollouts_since_renewal")


def seen_on_validation(bandit: Bandit, depths: NDArray[np.int64]) -> dict[str, float]:
    """What is logged of the depths chosen for validation queries."""
    summary = bandit.summary(depths)
    values = {
        "eval/reward": summary.mean,
        "eval/regret": summary.oracle - summary.mean,
        "eval/ndcg@10": Bandit(bandit.table, reward=NDCG).mean(depths),
    }
    if summary.gap_closed is not None:
        values["eval/gap_closed"] = summary.gap_closed
    return values


class ValidationCallback(BaseCallback):
    """Averages the policy's weights over the end of the training, and judges on validation
    queries.
    """

    average: AveragedModel

    def __init__(
        self, task: RetrievalTask, bandit: Bandit, interval: int, average_from: int
    ) -> None:
        super().__init__()
        self.task = task
        self.bandit = bandit
        self.interval = interval
        self.average_from = average_from
        self.history: list[tuple[int, float]] = []
        self.training: list[tuple[int, float]] = []
        self._rollouts = 0
        self._begun_at = -1
        self._sums: defaultdict[str, float] = defaultdict(float)

    def _init_callback(self) -> None:
        if not hasattr(self, "average"):
            self.average = AveragedModel(self.model.policy)

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for name in MEASURES:
            self._sums[name] += sum(info[name] for info in infos)
        self._sums["reward"] += float(self.locals["rewards"].sum())
        self._sums["episodes"] += len(infos)
        return True

    def _on_rollout_start(self) -> None:
        # At the start, so that the untrained policy is judged too.
        if self._begins():
            if self._rollouts % self.interval == 0:
                self.evaluate()
            self._rollouts += 1

    def _on_rollout_end(self) -> None:
        means = {name: total / self._sums["episodes"] for name, total in self._sums.items()}
        for name in (*TERMS, "regret"):
            self.logger.record(f"reward/{name}", means[name])
        closed = gap_closed(means["reward"], means["random"], means["reward"] + means["regret"])
        if closed is not None:
            self.logger.record("reward/gap_closed", closed)
            self.training.append((self.num_timesteps, closed))
        self._sums.clear()

    def _on_training_end(self) -> None:
        if self._begins():
            self.evaluate()

    def _begins(self) -> bool:
        """Take the weights that the last update left into the average, once, or begin it."""
        if self._begun_at == self.num_timesteps:
            return False  # the checkpoint that the run goes on from was written after this
        self._begun_at = self.num_timesteps
        if self.num_timesteps <= self.average_from:
            self.average.n_averaged.zero_()
        self.average.update_parameters(self.model.policy)
        return True

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Between two rollouts: the average of the weights, and JSON values."""
        state = {
            "averaged": int(self.average.n_averaged),
            "history": self.history,
            "training": self.training,
            "rollouts": self._rollouts,
            "begun_at": self._begun_at,
        }
        return {"average": parameters_to_vector(self.average.parameters()).detach()}, state

    def set_state(
        self, policy: nn.Module, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Go on from `get_state`."""
        self.average = AveragedModel(policy)
        _fill(self.average, tensors["average"])
        self.average.n_averaged.fill_(state["averaged"])
        self.history = [(step, mean) for step, mean in state["history"]]
        self.training = [(step, closed) for step, closed in state["training"]]
        self._rollouts, self._begun_at = state["rollouts"], state["begun_at"]

    def evaluate(self) -> None:
        """Judge the greedy policy now: the average, which is the policy itself until half-time."""
        policy = cast(BasePolicy, self.average.module)
        depths, _ = policy.predict(self.bandit.observations, deterministic=True)
        values: dict[str, Any] = dict(seen_on_validation(self.bandit, depths))
        mean = values["eval/reward"]
        better = all(mean > before for _, before in self.history)
        for output in self.logger.output_formats:
            given = values
            if isinstance(output, TensorBoardOutputFormat):
                given = values | {"policy/depths": torch.from_numpy(depths)}
                if better:
                    given["attention/depth"] = self._picture(int(depths[0]))
            if isinstance(output, KVWriter):
                output.write(given, dict.fromkeys(given, ()), self.num_timesteps)
        self.history.append((self.num_timesteps, mean))

    def _picture(self, depth: int) -> Image:
        """The attention of the first validation query at the depth chosen for it."""
        query = self.bandit.query_ids[0]
        weights, tokens = self.task.attention(query, depth)
        outcome = self.bandit.outcome(0, depth)
        frame = attention_frame(query, weights, tokens, depth, self.bandit.num_depths, outcome)
        return Image(frame, "HWC")


class CheckpointCallback(BaseCallback):
    """Writes checkpoints between rollouts, ends the run when told to, and watches the numbers."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        validation: ValidationCallback,
        every: int,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.validation = validation
        self.every = every
        self.asked = asked
        self.last: Path | None = None
        self.queries: dict[str, None] = {}
        self._rollouts = 0

    def _on_rollout_start(self) -> None:
        self._require_finite()
        self.queries.clear()
        asked = self.asked()
        if asked or self._rollouts == self.every:
            self.write()
        if asked:
            raise KeyboardInterrupt
        self._rollouts += 1

    def _on_step(self) -> bool:
        self.queries |= dict.fromkeys(info["query"] for info in self.locals["infos"])
        return True

    def _on_training_end(self) -> None:
        self._require_finite()
        self.write()

    def _require_finite(self) -> None:
        for name, parameter in self.model.policy.named_parameters():
            if not parameter.isfinite().all():
                raise FloatingPointError(f"{name} is not finite at step {self.num_timesteps}")

    def write(self) -> None:
        """Write a checkpoint now."""
        self._rollouts = 0
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                # Events before the step are not written again after a resume: they must be there.
                output.writer.flush()
        tensors, state = training_state(self.model)  # type: ignore[arg-type]
        average, validation = self.validation.get_state()
        self.last = self.checkpoints.write(
            self.num_timesteps, tensors | average, state | {"validation": validation}
        )


def training_state(model: OnPolicyAlgorithm) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a training of one-step episodes consists of, as tensors and JSON values."""
    env, buffer, logger = model.get_env(), model.ep_info_buffer, model.logger
    assert env is not None
    assert buffer is not None
    tensors, groups = optimizer_state(model.policy.optimizer)
    for name in NETWORKS:
        if hasattr(model, name):
            tensors[name] = parameters_to_vector(getattr(model, name).parameters()).detach()
    kind, key, *position = np.random.get_state()  # noqa: NPY002 - SB3 uses it
    tensors["last/observations"] = torch.from_numpy(np.array(model._last_obs))
    tensors["generator/numpy"] = torch.from_numpy(np.asarray(key).astype(np.int64))
    tensors["generator/torch"] = torch.get_rng_state()
    if model.device.type == "cuda":
        tensors["generator/cuda"] = torch.cuda.get_rng_state(model.device)
    return tensors, {
        "num_timesteps": model.num_timesteps,
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "groups": groups,
        "environment": env.env_method("get_state")[0],
        "episodes": [[float(one["r"]), int(one["l"]), float(one["t"])] for one in buffer],
        "numpy": [kind, *position],
        "pending": [
            [name, np.asarray(value).item(), logger.name_to_count[name], excluded]
            for name, value in logger.name_to_value.items()
            for excluded in [logger.name_to_excluded[name]]
        ],
    }


def restore_training(model: OnPolicyAlgorithm, checkpoint: Checkpoint) -> None:
    """Put a freshly built algorithm where another one was."""
    tensors, state = checkpoint.tensors, checkpoint.state
    for name in NETWORKS:
        if hasattr(model, name):
            _fill(getattr(model, name), tensors[name])
    restore_optimizer(model.policy.optimizer, tensors, state["groups"])
    model.num_timesteps = state["num_timesteps"]
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model._last_obs = tensors["last/observations"].numpy()
    assert model.env is not None
    model.env.env_method("set_state", state["environment"])
    # Numbers of the types VecMonitor gives, so that their mean is computed as before.
    assert model.ep_info_buffer is not None
    model.ep_info_buffer.clear()
    model.ep_info_buffer.extend(
        {"r": np.float32(r), "l": np.int32(length), "t": t} for r, length, t in state["episodes"]
    )
    for name, value, count, excluded in state["pending"]:
        model.logger.name_to_value[name] = value
        model.logger.name_to_count[name] = count
        model.logger.name_to_excluded[name] = tuple(excluded)
    # Last: building the algorithm has seeded them.
    kind, *position = state["numpy"]
    key = tensors["generator/numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, key, *position))  # noqa: NPY002
    torch.set_rng_state(tensors["generator/torch"])
    if "generator/cuda" in tensors and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator/cuda"], model.device)


@torch.no_grad()
def _fill(module: nn.Module, vector: Tensor) -> None:
    """Give a module the parameters of `parameters_to_vector`."""
    parameters = list(module.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, values in zip(parameters, vector.split(sizes), strict=True):
        parameter.copy_(values.view_as(parameter))


class ResumedTensorBoard(TensorBoardOutputFormat):
    """SB3's TensorBoard output, for a run that goes on: events from `purge_step` on are void."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._is_closed = False
