"""Train a supervised router: labels by a rule or by the oracle, no exploration."""

from typing import TYPE_CHECKING, ClassVar

from maw_gym.agents.settings import SupervisedSettings
from maw_gym.runners.experiments.runs import run_main
from maw_gym.runners.experiments.settings import MAIN_FLAGS, RunSettings, Spec
from maw_gym.settings import checked

if TYPE_CHECKING:
    from maw_gym.runners.experiments.training import Log, Trained
    from maw_gym.tables.task import RetrievalTask


@checked
class SupervisedRunSettings:
    """Settings of a supervised run."""

    main_flags: ClassVar = ("labels", *MAIN_FLAGS)
    spec: Spec = Spec(online=None, learner=SupervisedSettings())
    run: RunSettings = RunSettings()


def train_classifier(task: "RetrievalTask", spec: Spec, log: "Log") -> "Trained":
    """A router trained on labels."""
    from maw_gym.agents.supervised import train_supervised
    from maw_gym.checkpoints import stage_folder
    from maw_gym.runners.experiments.training import ROUTER, fit_router

    checkpoint = stage_folder(log.folder / ROUTER, "training")
    return fit_router(train_supervised, task, spec, log, checkpoint=checkpoint)


def main(settings: SupervisedRunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from maw_gym.runners.experiments.training import training_run

    training_run(f"supervised-{settings.spec.learner.labels}", train_classifier, settings)


if __name__ == "__main__":
    run_main(SupervisedRunSettings, main)
