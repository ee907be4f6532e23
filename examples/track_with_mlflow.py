"""Follow a training with MLflow (pip install mlflow): a callback that hands every number on.

In this folder:

    maw-gym train grpo --callback track_with_mlflow:MLflowCallback

Weights & Biases, ClearML and others are followed in the same way.
"""

from pathlib import Path
from typing import Any

import mlflow
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

import maw_gym


class MLflowOutput(KVWriter):
    """Where Stable-Baselines3 writes what it logs."""

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        # MLflow knows no "@" in names.
        numbers = {name.replace("@", "_at_"): float(one) for name, one in key_values.items()}
        mlflow.log_metrics(numbers, step=step)


class MLflowCallback(BaseCallback):
    """A run of MLflow for each training."""

    def _on_training_start(self) -> None:
        folder = Path(self.logger.dir or ".")
        mlflow.start_run(run_name=folder.name)
        mlflow.log_params(maw_gym.Run(folder).settings)
        self.logger.output_formats.append(MLflowOutput())

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        mlflow.end_run()
