"""Train a GRPO router: which of the encoder's depths should each query take?"""

from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar

from maw_gym.agents.grpo.settings import GRPOSettings
from maw_gym.runners.experiments.runs import run_main
from maw_gym.runners.experiments.settings import MAIN_FLAGS, Spec, TrainingRunSettings
from maw_gym.settings import checked

if TYPE_CHECKING:
    from maw_gym.runners.experiments.training import Log, Trained
    from maw_gym.tables.task import RetrievalTask


@checked
class GRPORunSettings:
    """Settings of a GRPO run."""

    main_flags: ClassVar = MAIN_FLAGS
    spec: Spec = Spec(learner=GRPOSettings())
    run: TrainingRunSettings = TrainingRunSettings()


def train_grpo(task: "RetrievalTask", spec: Spec, log: "Log") -> "Trained":
    """A router trained with GRPO."""
    from maw_gym.agents.grpo import GRPO
    from maw_gym.runners.experiments.training import build, learn

    model = build(GRPO, task, spec, **asdict(spec.learner))
    return learn(model, task, spec, log, "GRPO")


def main(settings: GRPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from maw_gym.runners.experiments.training import training_run

    training_run("GRPO", train_grpo, settings)


if __name__ == "__main__":
    run_main(GRPORunSettings, main)
