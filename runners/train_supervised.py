"""Train a supervised router: labels by a rule or by the oracle, no exploration."""

from typing import ClassVar

from maw_gym.settings import checked, part
from runners.experiments.runs import run_main
from runners.experiments.settings import RunSettings, SupervisedSpec


@checked
class SupervisedRunSettings(RunSettings, SupervisedSpec):
    """Settings of a supervised run; see `agents.supervised`."""

    main_flags: ClassVar = (
        "dataset",
        "text_encoder",
        "observation",
        "labels",
        "seed",
        "device",
        "run_name",
        "resume",
    )


def main(settings: SupervisedRunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from runners.experiments.training import train_classifier, train_run

    spec = part(SupervisedSpec, settings)
    train_run(settings, spec, f"supervised-{settings.labels}", train_classifier)


if __name__ == "__main__":
    run_main(SupervisedRunSettings, main)
