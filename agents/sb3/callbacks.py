"""What happens between rollouts: logging, looking at validation queries, checkpoints."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, KVWriter, TensorBoardOutputFormat
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.sb3.training_state import aliases, first_not_finite, training_state
from maw_gym.checkpoints import Checkpoints
from maw_gym.envs.bandit import NDCG, TERMS, Bandit, gap_closed
from maw_gym.envs.rendering import attention_frame
from maw_gym.tables.task import RetrievalTask

MEASURES: Final = (*TERMS, "regret", "random")  # of each episode, in its info


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
        # At the start, so that the untrained policy is judged too and every update but the last
        # is followed by a look; `_on_training_end` takes the last.
        if self._begun_at == self.num_timesteps:
            return  # the checkpoint that the run goes on from was written after this
        self._begun_at = self.num_timesteps
        self._average()
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
        if self._begun_at != self.num_timesteps:
            self._begun_at = self.num_timesteps
            self._average()
            self.evaluate()

    def _average(self) -> None:
        """Take the weights that the last update left into the average, or begin it with them."""
        if self.num_timesteps <= self.average_from:
            self.average.n_averaged.zero_()
        self.average.update_parameters(self.model.policy)

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Between two rollouts: the average of the weights, and JSON values."""
        weights = self.average.module.state_dict()
        state = {
            "averaged": int(self.average.n_averaged),
            "history": self.history,
            "training": self.training,
            "rollouts": self._rollouts,
            "begun_at": self._begun_at,
        }
        return {f"average/{name}": weights[name] for name in set(aliases(weights).values())}, state

    def set_state(
        self, policy: nn.Module, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Go on from `get_state`; the policy tells which names share a tensor."""
        self.average = AveragedModel(policy)
        names = aliases(policy.state_dict()).items()
        weights = {name: tensors[f"average/{kept}"] for name, kept in names}
        self.average.module.load_state_dict(weights)
        self.average.n_averaged.fill_(state["averaged"])
        self.history = [(step, mean) for step, mean in state["history"]]
        self.training = [(step, closed) for step, closed in state["training"]]
        self._rollouts, self._begun_at = state["rollouts"], state["begun_at"]

    def evaluate(self) -> None:
        """Judge the greedy policy now: the average, which is the policy itself until half-time."""
        policy = cast(BasePolicy, self.average.module)
        depths, _ = policy.predict(self.bandit.observations, deterministic=True)
        summary = self.bandit.summary(depths)
        mean = summary.mean
        values: dict[str, Any] = {
            "eval/reward": mean,
            "eval/regret": summary.oracle - mean,
            "eval/ndcg@10": Bandit(self.bandit.table, reward=NDCG).mean(depths),
        }
        if summary.gap_closed is not None:
            values["eval/gap_closed"] = summary.gap_closed
        better = all(mean > before for _, before in self.history)
        for output in self.logger.output_formats:
            given = values
            if isinstance(output, TensorBoardOutputFormat):
                given = values | {"policy/depths": torch.from_numpy(depths)}
                if better:
                    # Of the policies that were best so far.
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
        name = first_not_finite(self.model.policy)
        if name is not None:
            raise FloatingPointError(f"{name} is not finite at step {self.num_timesteps}")
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
        name = first_not_finite(self.model.policy)
        if name is not None:
            raise FloatingPointError(f"{name} is not finite at step {self.num_timesteps}")
        self.write()

    def write(self) -> None:
        """Write a checkpoint now."""
        self._rollouts = 0
        for output in self.logger.output_formats:
            if isinstance(output, SyncedTensorBoard):
                # Events before the step are not written again after a resume: they must be there.
                output.sync()
        tensors, state = training_state(self.model)  # type: ignore[arg-type]
        best, validation = self.validation.get_state()
        self.last = self.checkpoints.write(
            self.num_timesteps, tensors | best, state | {"validation": validation}
        )


class ProgressBar(BaseCallback):
    """Environment steps on standard error, where that is a terminal."""

    def _on_training_start(self) -> None:
        total = self.locals["total_timesteps"]
        done = self.model.num_timesteps
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


class SyncedTensorBoard(TensorBoardOutputFormat):
    """SB3's TensorBoard output, for runs that may be killed and go on."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._is_closed = False

    def sync(self) -> None:
        """Bring everything to the disk, past the system's own buffers."""
        self.writer.flush()
        for path in self.folder.glob("events.out.tfevents.*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
