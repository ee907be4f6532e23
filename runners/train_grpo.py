"""Train a GRPO router: which of the encoder's depths should each query take?"""

from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar

from maw_gym.settings import checked
from runners.experiments.runs import Stopwatch, open_run, run_main, write_config
from runners.experiments.settings import GRPOSpec, TrainingRunSettings

if TYPE_CHECKING:
    from maw_gym.tables.task import RetrievalTask
    from runners.experiments.training import Log, Trained


@checked
class GRPORunSettings:
    """Settings of a GRPO run."""

    main_flags: ClassVar = (
        *("dataset", "text_encoder", "observation", "timesteps", "seed"),
        *("device", "run_name", "resume"),
    )
    spec: GRPOSpec = GRPOSpec()
    run: TrainingRunSettings = TrainingRunSettings()


def train_grpo(task: "RetrievalTask", spec: GRPOSpec, log: "Log") -> "Trained":
    """A router trained with GRPO."""
    from agents.grpo import GRPO
    from runners.experiments.training import environment, learn, policy_arguments, refusals

    env = environment(task, spec)
    with refusals():
        model = GRPO(env=env, **policy_arguments(task, spec), **asdict(spec.learner))
    return learn(model, task, spec, log, "GRPO")


def main(settings: GRPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from runners.experiments.report import report
    from runners.experiments.result import by_training
    from runners.experiments.training import Log, open_task

    spec, run = settings.spec, settings.run
    folder, watch = (
        open_run(settings, f"grpo-{spec.task.dataset}-seed{spec.task.seed}"),
        Stopwatch(),
    )
    with watch.stage("encoder and depth tables"):
        task = open_task(spec.task)
    write_config(folder, "GRPO", settings, task.collection.provenance, task.encoder_provenance)
    log = Log(folder, run.resume is not None, run.checkpoint_every)
    with watch.stage("training"):
        result = by_training(train_grpo, task, spec, "test", log)
    report(task, spec.task, "GRPO", result, folder, watch)


if __name__ == "__main__":
    run_main(GRPORunSettings, main)
