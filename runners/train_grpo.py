"""Train a GRPO router: which of the encoder's depths should each query take?"""

from maw_gym.settings import checked, part
from runners.experiments.runs import run_main
from runners.experiments.settings import GRPOSpec, OnlineRunSettings


@checked
class GRPORunSettings(OnlineRunSettings, GRPOSpec):
    """Settings of a GRPO run."""


def main(settings: GRPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from runners.experiments.training import train_grpo, train_run

    train_run(settings, part(GRPOSpec, settings), "GRPO", train_grpo)


if __name__ == "__main__":
    run_main(GRPORunSettings, main)
