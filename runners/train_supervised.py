"""Train a supervised router: labels by a rule or by the oracle, no exploration."""

from typing import TYPE_CHECKING, ClassVar

from maw_gym.settings import checked
from runners.experiments.runs import Stopwatch, open_run, run_main, write_config
from runners.experiments.settings import RunSettings, SupervisedSpec

if TYPE_CHECKING:
    from maw_gym.tables.task import RetrievalTask
    from runners.experiments.training import Log, Trained


@checked
class SupervisedRunSettings:
    """Settings of a supervised run."""

    main_flags: ClassVar = (
        *("dataset", "text_encoder", "observation", "labels", "seed"),
        *("device", "run_name", "resume"),
    )
    spec: SupervisedSpec = SupervisedSpec()
    run: RunSettings = RunSettings()


def train_classifier(task: "RetrievalTask", spec: SupervisedSpec, log: "Log") -> "Trained":
    """A router trained on labels."""
    from torch.utils.tensorboard import SummaryWriter

    from agents.supervised import train_supervised
    from maw_gym.checkpoints import stage_folder
    from runners.experiments.training import ROUTER, fitted, forget_training

    if not log.resume:
        forget_training(log.folder)
    for events in log.folder.glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(log.folder)) as writer:
        router, facts = train_supervised(
            task,
            observation=spec.task.observation,
            network=spec.task.network,
            reward=spec.task.reward,
            settings=spec.learner,
            seed=spec.task.seed,
            balance=spec.task.balance,
            writer=writer,
            checkpoint=stage_folder(log.folder / ROUTER, "training"),
        )
        return fitted(task, spec.task, router, facts, writer)


def main(settings: SupervisedRunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from agents.supervised import label_sentence
    from runners.experiments.report import report
    from runners.experiments.result import by_training
    from runners.experiments.training import Log, forget_training, open_task

    spec = settings.spec
    name = f"supervised-{spec.learner.labels}"
    folder, watch = (
        open_run(settings, f"{name}-{spec.task.dataset}-seed{spec.task.seed}"),
        Stopwatch(),
    )
    with watch.stage("encoder and depth tables"):
        task = open_task(spec.task)
    write_config(folder, name, settings, task.collection.provenance, task.encoder_provenance)
    log = Log(folder, settings.run.resume is not None)
    with watch.stage("training"):
        result = by_training(train_classifier, task, spec, "test", log)
    print(f"\nlabels: {label_sentence(result.facts)}")
    report(task, spec.task, name, result, folder, watch)
    # Only now: a run that was stopped in its report has nothing to train again.
    forget_training(folder)


if __name__ == "__main__":
    run_main(SupervisedRunSettings, main)
