"""What happens between rollouts: logging, looking at validation queries, checkpoints."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, KVWriter, TensorBoardOutputFormat
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from agents.sb3.stopping import STOP
from agents.sb3.training_state import aliases, first_not_finite, training_state
from maw_gym.envs.bandit import Bandit, Outcome
from maw_gym.envs.rendering import Scene, attention_frame
from maw_gym.files.checkpoints import Checkpoints
from maw_gym.tables.rewards import NDCG, TERMS
from maw_gym.tables.task import RetrievalTask


class ValidationCallback(BaseCallback):
    """Judges the greedy policy on validation queries and keeps the best one.

    Logged: `reward/*`, the mean terms of the training episodes since the last rollout; at each
    evaluation `eval/reward`, `eval/regret`, `eval/gap_closed`, `eval/ndcg@10`, `policy/depths` and
    `attention/depth`. Evaluations are written at once, at the step of the policy they judge; what
    SB3 records waits for the end of the next rollout.

    Args:
        task: draws the attention picture.
        bandit: the validation queries.
        interval: rollouts between evaluations.

    Attributes:
        best_reward: mean reward of the best policy so far.
        best_weights: its state dict.
        best_step: the timestep at which it was seen.
        history: (timestep, mean validation reward) of every evaluation.
    """

    def __init__(
        self,
        task: RetrievalTask,
        bandit: Bandit,
        interval: int,
    ) -> None:
        super().__init__()
        self.task = task
        self.bandit = bandit
        self.interval = interval
        self.best_reward = -np.inf
        self.best_weights: dict[str, Tensor] = {}
        self.best_step = 0
        self.history: list[tuple[int, float]] = []
        self._rollouts = 0
        self._begun_at = -1
        self._sums: Counter[str] = Counter()
        self._episodes = 0

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            for term in TERMS:
                self._sums[term] += info[term]
        self._episodes += len(self.locals["infos"])
        return True

    def _on_rollout_start(self) -> None:
        # At the start, so that the untrained policy is judged too and every update but the last
        # is followed by a look; `_on_training_end` takes the last.
        if self._begun_at == self.num_timesteps:
            return  # the checkpoint that the run goes on from was written after this
        self._begun_at = self.num_timesteps
        if self._rollouts % self.interval == 0:
            self.evaluate()
        self._rollouts += 1

    def _on_rollout_end(self) -> None:
        for term in TERMS:
            self.logger.record(f"reward/{term}", self._sums[term] / self._episodes)
        self._sums.clear()
        self._episodes = 0

    def _on_training_end(self) -> None:
        if self.history[-1][0] != self.num_timesteps:
            self.evaluate()

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Between two rollouts: the best weights so far, and JSON values."""
        kept = set(aliases(self.model.policy.state_dict()).values())
        state = {
            "best_reward": self.best_reward,
            "best_step": self.best_step,
            "history": self.history,
            "rollouts": self._rollouts,
            "begun_at": self._begun_at,
        }
        return {f"best/{name}": self.best_weights[name] for name in kept}, state

    def set_state(
        self, policy: nn.Module, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Go on from `get_state`; the policy tells which names share a tensor."""
        names = aliases(policy.state_dict()).items()
        self.best_weights = {name: tensors[f"best/{kept}"] for name, kept in names}
        self.best_reward, self.best_step = state["best_reward"], state["best_step"]
        self.history = [(step, mean) for step, mean in state["history"]]
        self._rollouts, self._begun_at = state["rollouts"], state["begun_at"]

    def evaluate(self) -> None:
        """Judge the greedy policy now."""
        depths, _ = self.model.predict(self.bandit.observations, deterministic=True)
        summary = self.bandit.summary(depths)
        mean = summary.mean
        values: dict[str, Any] = {
            "eval/reward": mean,
            "eval/regret": summary.oracle - mean,
            "eval/ndcg@10": Bandit(self.bandit.table, reward=NDCG).mean(depths),
        }
        if summary.gap_closed is not None:
            values["eval/gap_closed"] = summary.gap_closed
        better = mean > self.best_reward
        for output in self.logger.output_formats:
            given = values
            if isinstance(output, TensorBoardOutputFormat):
                given = values | {"policy/depths": torch.from_numpy(depths)}
                if better:
                    # Of the policies that were best so far: drawing takes half a second.
                    given["attention/depth"] = self._picture(int(depths[0]))
            if isinstance(output, KVWriter):
                output.write(given, dict.fromkeys(given, ()), self.num_timesteps)
        self.history.append((self.num_timesteps, mean))
        if better:
            self.best_reward, self.best_step = mean, self.num_timesteps
            state = self.model.policy.state_dict()
            self.best_weights = {name: value.detach().clone() for name, value in state.items()}

    def _picture(self, depth: int) -> Image:
        """The attention of the first validation query at the depth chosen for it."""
        query = self.bandit.query_ids[0]
        weights, tokens = self.task.attention(query, depth)
        outcome: Outcome = self.bandit.outcome(0, depth)
        scene = Scene(query, weights, tokens, depth, self.bandit.num_depths, outcome)
        return Image(attention_frame(scene), "HWC")


class CheckpointCallback(BaseCallback):
    """Writes checkpoints between rollouts, ends the run when told to, and watches the numbers.

    Stands behind the ValidationCallback in the list, whose look at the validation queries is then
    part of the checkpoint.

    Args:
        checkpoints: where they go.
        validation: its state is saved along.
        every: rollouts between checkpoints. One is written at the end of the training besides, and
            one when a signal has asked for the end.

    Attributes:
        last: the last checkpoint written, or gone on from.
        queries: ids of the queries of the rollout in progress, or of the last one.
    """

    def __init__(
        self, checkpoints: Checkpoints, validation: ValidationCallback, every: int
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.validation = validation
        self.every = every
        self.last: Path | None = None
        self.queries: dict[str, None] = {}
        self._rollouts = 0

    def _on_rollout_start(self) -> None:
        name = first_not_finite(self.model.policy)
        if name is not None:
            raise FloatingPointError(f"{name} is not finite at step {self.num_timesteps}")
        self.queries.clear()
        if STOP.received is not None or self._rollouts == self.every:
            self.write()
        self._rollouts += 1
        STOP.raise_if_received()

    def _on_step(self) -> bool:
        self.queries |= dict.fromkeys(info["query_id"] for info in self.locals["infos"])
        return True

    def _on_training_end(self) -> None:
        name = first_not_finite(self.model.policy)
        if name is not None:
            raise FloatingPointError(f"{name} is not finite at step {self.num_timesteps}")
        self.write()
        STOP.raise_if_received()

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


class SyncedTensorBoard(TensorBoardOutputFormat):
    """SB3's TensorBoard output, for runs that may be killed and go on.

    Args:
        folder: of the events.
        purge_step: readers forget what earlier files hold from this step on.
    """

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
