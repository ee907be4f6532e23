"""Train a PPO router: Stable-Baselines3's algorithm on the environment that GRPO learns from."""

from typing import TYPE_CHECKING, ClassVar

from maw_gym.settings import checked
from runners.experiments.runs import Stopwatch, open_run, run_main, write_config
from runners.experiments.settings import PPOSpec, TrainingRunSettings

if TYPE_CHECKING:
    from maw_gym.tables.task import RetrievalTask
    from runners.experiments.training import Log, Trained


@checked
class PPORunSettings:
    """Settings of a PPO run."""

    main_flags: ClassVar = (
        *("dataset", "text_encoder", "observation", "timesteps", "seed"),
        *("device", "run_name", "resume"),
    )
    spec: PPOSpec = PPOSpec()
    run: TrainingRunSettings = TrainingRunSettings()


def train_ppo(task: "RetrievalTask", spec: PPOSpec, log: "Log") -> "Trained":
    """A router trained with PPO."""
    from agents.ppo import make_ppo
    from runners.experiments.training import environment, learn, policy_arguments, refusals

    env = environment(task, spec)
    with refusals():
        model = make_ppo(env, spec.learner, **policy_arguments(task, spec))
    return learn(model, task, spec, log, "PPO")


def main(settings: PPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from runners.experiments.report import report
    from runners.experiments.result import by_training
    from runners.experiments.training import Log, open_task

    spec, run = settings.spec, settings.run
    folder = open_run(settings, f"ppo-{spec.task.dataset}-seed{spec.task.seed}")
    watch = Stopwatch()
    with watch.stage("encoder and depth tables"):
        task = open_task(spec.task)
    write_config(folder, "PPO", settings, task.collection.provenance, task.encoder_provenance)
    log = Log(folder, run.resume is not None, run.checkpoint_every)
    with watch.stage("training"):
        result = by_training(train_ppo, task, spec, "test", log)
    report(task, spec.task, "PPO", result, folder, watch)


if __name__ == "__main__":
    run_main(PPORunSettings, main)
