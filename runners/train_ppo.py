"""Train a PPO router: Stable-Baselines3's algorithm on the environment that GRPO learns from."""

from maw_gym.settings import checked, part
from runners.experiments.runs import run_main
from runners.experiments.settings import OnlineRunSettings, PPOSpec


@checked
class PPORunSettings(OnlineRunSettings, PPOSpec):
    """Settings of a PPO run; `agents.ppo` says which of PPO's settings mean nothing here."""


def main(settings: PPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    from runners.experiments.training import train_ppo, train_run

    train_run(settings, part(PPOSpec, settings), "PPO", train_ppo)


if __name__ == "__main__":
    run_main(PPORunSettings, main)
