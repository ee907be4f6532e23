import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from bandits import BanditEnv, GroupedBanditEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import nn

from agents import GRPO, GRPOPolicyNetwork, GRPORouter, router_from_model
from agents.sb3.vec_env import to_sb3
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router

ABOUT = {"learner": "GRPO", "seed": 7}


def trained(**kwargs: Any) -> GRPO:
    """A few updates make weights, biases and reference differ from how they began."""
    env = to_sb3(GroupedBanditEnv(16, 4))
    model = GRPO(GRPOPolicyNetwork, env, n_steps=4, seed=0, device="cpu", **kwargs)
    return model.learn(512)


@pytest.fixture(scope="module")
def model() -> GRPO:
    features = {"mean": [0.1, 0.2, 0.3, 0.4], "scale": [1.0, 2.0, 3.0, 4.0], "limit": 2.0}
    return trained(policy_kwargs={"features_extractor_kwargs": features})


def random_observations(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)


def sb3_logits(model: Any, observations: np.ndarray) -> torch.Tensor:
    """Log-probabilities of SB3's own distribution."""
    with torch.no_grad():
        return model.policy.get_distribution(torch.from_numpy(observations)).distribution.logits


def check_same(router: DepthRouter, model: Any) -> None:
    observations = random_observations(500)
    mine = router(torch.from_numpy(observations)).log_softmax(-1).detach()
    np.testing.assert_allclose(mine, sb3_logits(model, observations), atol=1e-6)
    theirs, _ = model.predict(observations, deterministic=True)
    assert len(set(theirs.tolist())) > 1
    np.testing.assert_array_equal(router.predict(observations)[0], theirs)
    assert router.predict(observations[0])[0] == theirs[0]


def test_router_is_the_policy(model: GRPO) -> None:
    check_same(router_from_model(model, ("attention",), ABOUT), model)


def test_router_survives_its_file(model: GRPO, tmp_path: Any) -> None:
    save_router(tmp_path / "router.safetensors", router_from_model(model, ("content",), ABOUT))
    router = load_router(tmp_path / "router.safetensors")
    check_same(router, model)
    assert router.observation == ("content",)
    assert router.settings == ABOUT


def test_grpo_router_is_the_policy_under_the_seeds_name(model: GRPO) -> None:
    router = GRPORouter(model, ("attention",), ABOUT)
    assert isinstance(router, DepthRouter)
    check_same(router, model)


def test_router_is_a_copy() -> None:
    model = trained()
    router = router_from_model(model, ("attention",), ABOUT)
    before = router.predict(random_observations(50))[0]
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight.zero_()
    np.testing.assert_array_equal(router.predict(random_observations(50))[0], before)


def test_ppo_other_widths_and_activation() -> None:
    env = to_sb3(GroupedBanditEnv(16, 4))
    kwargs = {
        "net_arch": {"pi": [16, 8], "vf": [4]},
        "activation_fn": nn.Tanh,
        "features_extractor_kwargs": {"widths": (32,)},
    }
    model = PPO(
        GRPOPolicyNetwork, env, n_steps=4, batch_size=64, policy_kwargs=kwargs, seed=0, device="cpu"
    )
    model.learn(512)
    router = router_from_model(model, ("attention",), ABOUT)
    check_same(router, model)
    assert [linear.out_features for linear in router.linears] == [32, 16, 8, 4]
    assert router.activation == "tanh"


def test_other_policies_and_activations_are_refused() -> None:
    env = to_sb3(GroupedBanditEnv(16, 4))
    other = PPO("MlpPolicy", env, n_steps=4, batch_size=64, device="cpu")
    with pytest.raises(InputError, match="ActorCriticPolicy cannot be exported as a router"):
        router_from_model(other, ("attention",), ABOUT)
    model = GRPO(GRPOPolicyNetwork, env, device="cpu", policy_kwargs={"activation_fn": nn.ELU})
    with pytest.raises(InputError, match="unknown activation 'elu'"):
        router_from_model(model, ("attention",), ABOUT)


class Shifted(BanditEnv):
    """Actions 1 to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(4, start=1)


def test_actions_that_do_not_start_at_0_are_refused() -> None:
    env: gym.Env = Shifted()
    model = PPO(GRPOPolicyNetwork, env, n_steps=64, device="cpu")
    with pytest.raises(InputError, match="Discrete actions from 0"):
        router_from_model(model, ("attention",), ABOUT)


def test_grpo_can_be_imported_without_maw_gym() -> None:
    code = "import sys, agents.grpo; sys.exit('maw_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_are_missing() -> None:
    import agents

    assert agents.SupervisedClassificationRouter.__name__ == "SupervisedClassificationRouter"
    with pytest.raises(AttributeError, match="'agents' has no attribute 'nothing'"):
        _ = agents.nothing
