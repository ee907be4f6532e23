"""From settings to a run folder: the frame that the runners of all learners share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maw_gym.tables.task import RetrievalTask
from runners.experiments.online import MakeModel, Trained, open_task, train_online
from runners.experiments.report import report
from runners.experiments.runs import Stopwatch, new_run, write_config
from runners.experiments.settings import CommonSettings, OnlineSettings

# Trains on a task, with the run's folder for logs: what was trained, and facts for metrics.json.
Train = Callable[[RetrievalTask, Path], tuple[Trained, Mapping[str, Any]]]


def train_and_report(settings: CommonSettings, learner: str, train: Train) -> Path:
    """Train, judge on the test split, and leave a run folder.

    Args:
        settings: of the run, already checked.
        learner: its name in the table and, in lower case, in the folder's name.
        train: see `Train`.

    Returns:
        The folder.
    """
    folder = new_run(
        settings.logdir,
        settings.run_name,
        f"{learner.lower()}-{settings.dataset}-seed{settings.seed}",
        getattr(settings, "resume", None),
    )
    watch = Stopwatch()
    with watch.stage("encoder and depth tables"):
        task = open_task(settings)
    write_config(folder, learner, settings, task.collection.provenance, task.encoder_provenance)
    with watch.stage("training"):
        trained, facts = train(task, folder)
    report(task, settings, learner, trained, folder, watch, facts)
    return folder


def run_online(settings: OnlineSettings, learner: str, make_model: MakeModel) -> None:
    """`train_and_report` for a learner that acts in the environment."""

    def train(task: RetrievalTask, folder: Path) -> tuple[Trained, Mapping[str, Any]]:
        return train_online(task, settings, learner, make_model, folder), {}

    train_and_report(settings, learner, train)
