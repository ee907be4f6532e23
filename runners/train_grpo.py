"""Train a GRPO router: which of the encoder's depths should each query take?"""

from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from agents.grpo import GRPO
from agents.grpo.policies import GRPOPolicyNetwork
from runners.experiments.runs import run_main
from runners.experiments.settings import OnlineSettings
from runners.experiments.training import run_online


@dataclass(frozen=True)
class GRPOSettings(OnlineSettings):
    """Settings of a GRPO run; see `agents.grpo.GRPO` for what each does."""

    learning_rate: float = 1e-3
    """of Adam"""
    n_steps: int = 8
    """steps of every sub-environment per rollout"""
    n_epochs: int = 1
    """passes over each rollout"""
    batch_size: int | None = None
    """samples per gradient step; None is the whole rollout"""
    advantage: str = "group"
    """critic, group or group_mean"""
    ratio: str = "old"
    """of the policy to the reference or the old policy"""
    clip_range: float | None = None
    """clipping of the ratio; None is none"""
    clip_range_high: float | None = None
    """upper clipping where it differs"""
    kl: str = "exact"
    """exact, k1, k2 or k3"""
    kl_coef: float = 0.1
    """weight of the KL penalty"""
    reference_interval: int = 5
    """rollouts after which the reference policy is renewed"""
    ent_coef: float = 0.0
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss (advantage critic)"""

    def model(
        self, env: VecEnv, policy: type[GRPOPolicyNetwork], policy_kwargs: dict[str, Any]
    ) -> GRPO:
        """The algorithm of these settings."""
        return GRPO(
            policy,
            env,
            learning_rate=self.learning_rate,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            n_epochs=self.n_epochs,
            advantage=self.advantage,
            group_size=self.group_size,
            ratio=self.ratio,
            clip_range=self.clip_range,
            clip_range_high=self.clip_range_high,
            kl=self.kl,
            kl_coef=self.kl_coef,
            reference_interval=self.reference_interval,
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            policy_kwargs=policy_kwargs,
            seed=self.seed,
            device=self.device,
        )


def main(settings: GRPOSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    settings.check()
    run_online(settings, "GRPO", settings.model)


if __name__ == "__main__":
    run_main(GRPOSettings, main)
