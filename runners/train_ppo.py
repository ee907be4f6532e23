"""Train a PPO router: Stable-Baselines3's algorithm on the environment that GRPO learns from."""

from dataclasses import dataclass
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.grpo.policies import GRPOPolicyNetwork
from agents.ppo import PPOSettings, make_ppo
from runners.experiments.runs import run_main
from runners.experiments.settings import OnlineSettings
from runners.experiments.training import run_online


@dataclass(frozen=True)
class PPORunSettings(PPOSettings, OnlineSettings):
    """Settings of a PPO run; `agents.ppo` says which of PPO's settings mean nothing here."""

    def check(self) -> None:
        """Refuse what can be refused before any work starts."""
        OnlineSettings.check(self)
        PPOSettings.check(self)

    def model(
        self, env: VecEnv, policy: type[GRPOPolicyNetwork], policy_kwargs: dict[str, Any]
    ) -> PPO:
        """The algorithm of these settings."""
        return make_ppo(
            env,
            self,
            policy=policy,
            policy_kwargs=policy_kwargs,
            seed=self.seed,
            device=self.device,
        )


def main(settings: PPORunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    settings.check()
    run_online(settings, "PPO", settings.model)


if __name__ == "__main__":
    run_main(PPORunSettings, main)
