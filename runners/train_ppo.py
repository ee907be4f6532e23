"""Train a PPO router: Stable-Baselines3's algorithm on the environment that GRPO learns from."""

from typing import TYPE_CHECKING, ClassVar

from maw_gym.agents.settings import PPOSettings
from maw_gym.runners.experiments.runs import run_main
from maw_gym.runners.experiments.settings import MAIN_FLAGS, Spec, TrainingRunSettings
from maw_gym.settings import checked

if TYPE_CHECKING:
    from maw_gym.runners.experiments.training import Log, Trained
    from maw_gym.tables.task import RetrievalTask


@checked
class PPORunSettings:
    """Settings of a PPO run."""

    main_flags: ClassVar = MAIN_FLAGS
    spec: Spec = Spec(learner=PPOSettings())
    run: TrainingRunSettings = TrainingRunSettings()


def train_ppo(task: "RetrievalTask", spec: Spec, log: "Log") -> "Trained":
    """A router trained with PPO."""
    from stable_baselines3 import PPO

    from maw_gym.agents.settings import ppo_arguments
    from maw_gym.runners.experiments.training import build, learn

    assert spec.online is not None
    model = build(PPO, task, spec, **ppo_arguments(spec.learner, spec.online.num_envs))
    return learn(model, task, spec, log, "PPO")


def main(settings: PPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from maw_gym.runners.experiments.training import training_run

    training_run("PPO", train_ppo, settings)


if __name__ == "__main__":
    run_main(PPORunSettings, main)
