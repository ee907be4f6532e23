"""From settings to a run folder: the frame that the runners of all learners share."""

from collections.abc import Callable
from typing import Any

from agents.supervised import label_sentence
from maw_gym.envs.rendering import check_matplotlib
from maw_gym.tables.task import RetrievalTask
from runners.experiments.offline import forget_training
from runners.experiments.online import Log, Trained
from runners.experiments.report import report
from runners.experiments.routed import by_training
from runners.experiments.runs import Stopwatch, open_run, write_config
from runners.experiments.settings import RouterSettings, RunSettings
from runners.experiments.tasks import task_of


def train_run(
    settings: RunSettings,
    spec: RouterSettings,
    learner: str,
    train: Callable[[RetrievalTask, Any, Log], Trained],
) -> None:
    """Train, judge on the test split, and leave a run folder.

    Args:
        settings: where the run is kept, and how it is told in config.json.
        spec: what is trained.
        learner: its name in the table and, in lower case, in the folder's name.
        train: see `runners.experiments.online`.
    """
    check_matplotlib()
    folder = open_run(settings, f"{learner.lower()}-{spec.dataset}-seed{spec.seed}")
    watch = Stopwatch()
    with watch.stage("encoder and depth tables"):
        task = open_task(spec)
    write_config(folder, learner, settings, task.collection.provenance, task.encoder_provenance)
    log = Log(folder, settings.resume is not None, getattr(settings, "checkpoint_every", 0))
    with watch.stage("training"):
        did = by_training(train, task, spec, "test", log)
    if "label_histogram" in did.facts:
        print(f"\nlabels: {label_sentence(did.facts)}")
    report(task, spec, learner, did, folder, watch)
    # Only now: a run that was stopped in its report has nothing to train again.
    forget_training(folder)


def open_task(spec: RouterSettings) -> RetrievalTask:
    """The task of a run, with its tables built."""
    task = task_of(spec)
    for split in ("train", "validation", "test"):
        task.table(split)
    return task
