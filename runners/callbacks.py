"""What happens between rollouts: logging of rewards, and looking at validation queries."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, TensorBoardOutputFormat
from torch import Tensor

from maw_gym.bandit import Outcome
from maw_gym.depth_table import DepthTable
from maw_gym.evaluation import reward_summary
from maw_gym.rendering import Scene, attention_figure, figure_rgb
from maw_gym.task import RetrievalTask

TERMS = ("entropy", "focus", "alignment")


class ValidationCallback(BaseCallback):
    """Judges the greedy policy on validation queries and keeps the best one.

    Logged: `reward/*`, the mean terms of the training episodes since the last rollout; at each
    evaluation `eval/reward`, `eval/regret`, `eval/gap_closed`, `eval/ndcg@10`, `policy/depths` and
    `attention/depth`.

    Args:
        task: draws the attention picture.
        table: depth table of `validation`.
        observation: blocks.
        reward: the validation queries' reward (N, D).
        alignment: the validation queries' relevance alignment (N, D).
        best_fixed_depth: chosen on training queries, for the share of the gap.
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
        table: DepthTable,
        observation: tuple[str, ...],
        reward: np.ndarray[Any, Any],
        alignment: np.ndarray[Any, Any],
        best_fixed_depth: int,
        interval: int,
    ) -> None:
        super().__init__()
        self.task = task
        self.table = table
        self.observations = table.observation(observation)
        self.reward = reward
        self.alignment = alignment
        self.best_fixed_depth = best_fixed_depth
        self.interval = interval
        self.best_reward = -np.inf
        self.best_weights: dict[str, Tensor] = {}
        self.best_step = 0
        self.history: list[tuple[int, float]] = []
        self._rollouts = 0
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
        if self._rollouts % self.interval == 0:
            self.evaluate()
        self._rollouts += 1

    def _on_rollout_end(self) -> None:
        for term in TERMS:
            self.logger.record(f"reward/{term}", self._sums[term] / self._episodes)
        self._sums.clear()
        self._episodes = 0

    def _on_training_end(self) -> None:
        self.evaluate()
        self.logger.dump(self.num_timesteps)

    def evaluate(self) -> None:
        """Judge the greedy policy now."""
        depths, _ = self.model.predict(self.observations, deterministic=True)
        rows = np.arange(len(depths))
        found = reward_summary(self.reward, depths, self.best_fixed_depth)
        mean = float(self.reward[rows, depths].mean())
        regret = self.reward.max(axis=1) - self.reward[rows, depths]
        self.logger.record("eval/reward", mean)
        self.logger.record("eval/regret", float(regret.mean()))
        if found["gap_closed"] is not None:
            self.logger.record("eval/gap_closed", found["gap_closed"])
        self.logger.record("eval/ndcg@10", float(self.table.ndcg[rows, depths].mean()))
        self._tensorboard(depths)
        self.history.append((self.num_timesteps, mean))
        if mean > self.best_reward:
            self.best_reward, self.best_step = mean, self.num_timesteps
            state = self.model.policy.state_dict()
            self.best_weights = {name: value.detach().clone() for name, value in state.items()}

    def _tensorboard(self, depths: np.ndarray[Any, Any]) -> None:
        if not any(isinstance(f, TensorBoardOutputFormat) for f in self.logger.output_formats):
            return
        self.logger.record("policy/depths", torch.from_numpy(depths), exclude=("stdout", "log"))
        query, depth = self.table.query_ids[0], int(depths[0])
        weights, tokens = self.task.attention(query, depth)
        reward = self.reward[0]
        outcome = Outcome(
            float(reward[depth]),
            float(self.table.entropy[0, depth]),
            float(self.table.focus[0, depth]),
            float(self.alignment[0, depth]),
            float(reward.max() - reward[depth]),
        )
        scene = Scene(query, weights, tokens, depth, self.table.num_depths, outcome)
        picture = Image(figure_rgb(attention_figure(scene)), "HWC")
        self.logger.record("attention/depth", picture, exclude=("stdout", "log"))
