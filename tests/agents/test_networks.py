"""Networks of learners, trained models as routers, and PPO's settings for one-step episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from bandits import CONTEXTS, BanditEnv
from gymnasium import spaces
from hand_made import TABLE, random_table
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from maw_gym.agents import GRPO, GRPOPolicyNetwork, GRPORouter, SharedPolicyNetwork
from maw_gym.agents.grpo.policies import (
    CnnPolicy,
    MeanHead,
    SharedEncoder,
    actor_layers,
)
from maw_gym.agents.networks import new_router, standardisation
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.agents.settings import PPOSettings, ppo_arguments
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router
from maw_gym.tables.depth_table import is_shared

QUERIES, DEPTHS = 20, 5
ABOUT = {"learner": "GRPO", "seed": 7}
BOX = spaces.Box(-1, 1, (4,), np.float32)


def test_standardisation_by_hand() -> None:
    mean, scale = standardisation([[1.0, 5.0], [5.0, 5.0]])
    assert mean.tolist() == [3.0, 5.0]
    assert scale.tolist() == [0.5, 1.0]  # what hardly varies is left as it is
    # Two depths: 0, 2, 2, 4 of the first kind (mean 2, variance 2), 7 throughout of the second.
    mean, scale = standardisation([[0.0, 2.0, 7.0, 7.0], [2.0, 4.0, 7.0, 7.0]], together=2)
    assert mean.tolist() == [2.0, 2.0, 7.0, 7.0]
    np.testing.assert_allclose(scale, [2**-0.5, 2**-0.5, 1.0, 1.0], rtol=1e-6)


def test_which_network() -> None:
    assert is_shared("auto", ("retrieval", "profile"))
    assert not is_shared("auto", ("profile", "attention"))
    assert not is_shared("mlp", ("profile",))
    with pytest.raises(InputError, match="observation block 'content' has none; leave it out or"):
        is_shared("shared", ("profile", "content"))


@pytest.mark.parametrize(
    ("observation", "policy", "shapes"),
    [
        (("content",), GRPOPolicyNetwork, [(512, 5), (256, 512), (128, 256), (64, 128), (5, 64)]),
        # Entropy and focus of a depth, each thrice: itself, beside the mean, beside the largest.
        (("profile",), SharedPolicyNetwork, [(32, 6), (32, 32), (1, 32)]),
    ],
)
def test_new_router_has_grpos_shape_and_a_nearly_uniform_policy(
    observation: tuple[str, ...], policy: type, shapes: list[tuple[int, int]]
) -> None:
    table = random_table(QUERIES, DEPTHS)
    env = GRPOVectorEnvironment(8, 4, table=table, observation=observation)
    model = GRPO(policy, to_sb3(env), device="cpu")
    value = [tuple(weight.shape) for weight in model.policy.mlp_extractor.value_net.parameters()]
    assert value == ([(64, 128), (64,)] if policy is GRPOPolicyNetwork else [])
    actor = GRPORouter(model, observation, {})
    given = th.from_numpy(table.observation(observation))
    routers = [
        new_router(table, observation, "auto", {}, th.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    for router in (actor, *routers):
        assert [tuple(linear.weight.shape) for linear in router.linears] == shapes
    logits = [router(given).detach() for router in routers]
    assert th.equal(logits[0], logits[1])
    assert not th.equal(logits[0], logits[2])
    np.testing.assert_allclose(logits[0].softmax(-1), np.full((QUERIES, DEPTHS), 0.2), atol=0.02)


def learner(
    algorithm: type[OnPolicyAlgorithm], network: Any = GRPOPolicyNetwork, **policy: Any
) -> OnPolicyAlgorithm:
    env = make_vec_env(BanditEnv, 16, seed=0)
    own: Any = {GRPO: {"advantage": "critic"}, PPO: {"batch_size": 64}}.get(algorithm, {})
    settings: Any = {"n_steps": 4, "seed": 0, "device": "cpu", "policy_kwargs": policy}
    return algorithm(network, env, **settings, **own)


STANDARD = {"mean": [0.1, 0.2, 0.3, 0.4], "scale": [1.0, 2.0, 3.0, 4.0], "limit": 2.0}
OTHER = {
    "net_arch": {"pi": [16, 8], "vf": [4]},
    "activation_fn": nn.Tanh,
    "features_extractor_kwargs": {"widths": (32,)},
}


@pytest.mark.parametrize(
    ("model", "widths"),
    [
        (lambda: learner(GRPO, features_extractor_kwargs=STANDARD), [512, 256, 128, 64, 4]),
        (lambda: learner(PPO, **OTHER), [32, 16, 8, 4]),
        (lambda: learner(A2C, "MlpPolicy"), [64, 64, 4]),
        (lambda: learner(GRPO, "SharedPolicy", features_extractor_kwargs=STANDARD), [32, 32, 1]),
        (lambda: learner(PPO, SharedPolicyNetwork), [32, 32, 1]),
    ],
    ids=["GRPO", "PPO, other widths", "A2C, MlpPolicy", "GRPO, shared", "PPO, shared"],
)
def test_router_is_the_greedy_policy_and_a_copy(
    model: Any, widths: list[int], tmp_path: Path
) -> None:
    trained = model().learn(128)
    router = GRPORouter(trained, ("content",), ABOUT)
    assert [len(linear.weight) for linear in router.linears] == widths
    given = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    with th.no_grad():
        distribution = trained.policy.get_distribution(th.from_numpy(given)).distribution
    theirs, _ = trained.predict(given, deterministic=True)
    assert len(set(theirs.tolist())) > 1
    save_router(tmp_path / "router.safetensors", router)
    with th.no_grad():
        for weight in trained.policy.parameters():
            weight.zero_()
    loaded = load_router(tmp_path / "router.safetensors")
    assert (type(loaded), loaded.observation, loaded.settings) == (DepthRouter, ("content",), ABOUT)
    for each in (router, loaded):
        mine = each(th.from_numpy(given)).log_softmax(-1).detach()
        np.testing.assert_allclose(mine, distribution.logits, atol=1e-6)
        np.testing.assert_array_equal(each.predict(given)[0], theirs)
        assert each.predict(given[0])[0] == theirs[0]


def test_models_that_are_no_router() -> None:
    other: Any = DQN("MlpPolicy", BanditEnv(), device="cpu")
    with pytest.raises(InputError, match=r"DQNPolicy cannot .* RoutedEncoder\.from_model"):
        GRPORouter(other, ("attention",), ABOUT)
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    with pytest.raises(ValueError, match="CnnPolicy with a NatureCNN is no plain MLP: take Mlp"):
        actor_layers(CnnPolicy(image, spaces.Discrete(3), lambda _: 1e-3))
    with pytest.raises(InputError, match="unknown activation 'elu'"):
        GRPORouter(learner(GRPO, activation_fn=nn.ELU), ("attention",), ABOUT)
    shifted = BanditEnv()
    shifted.action_space = spaces.Discrete(4, start=1)
    with pytest.raises(InputError, match="Discrete actions from 0"):
        GRPORouter(PPO(GRPOPolicyNetwork, shifted, device="cpu"), ("attention",), ABOUT)


def test_the_value_of_a_shared_network_by_hand() -> None:
    value = MeanHead(2)
    with th.no_grad():
        value.weight.copy_(th.tensor([[1.0, 2]]))
        value.bias.fill_(4)
    assert value(th.tensor([[[1.0, 2], [3, 4], [5, 6]]])).tolist() == [[3 + 8 + 4]]


def test_what_a_shared_network_refuses() -> None:
    with pytest.raises(ValueError, match="of the 3; the observation has 4: take MlpPolicy"):
        SharedEncoder(BOX, actions=3)
    with pytest.raises(ValueError, match="mean has 3 numbers for observations of 4"):
        SharedEncoder(BOX, actions=2, mean=[0, 0, 0])
    with pytest.raises(ValueError, match="scores Discrete actions, got Box"):
        SharedPolicyNetwork(BOX, BOX, lambda _: 1e-3)
    for space in (spaces.Discrete(4), spaces.Dict(x=BOX), spaces.MultiBinary(4)):
        with pytest.raises(ValueError, match=r"has numbers for each of the 2 actions.* not .*4"):
            SharedPolicyNetwork(space, spaces.Discrete(2), lambda _: 1e-3)
    # 64 numbers and 4 depths divide, but the environment says that they are of none
    env = to_sb3(GRPOVectorEnvironment(8, 4, table=TABLE, observation="attention"))
    with pytest.raises(ValueError, match="this environment's observation has none: take MlpPolicy"):
        GRPO("SharedPolicy", env, device="cpu")
    env = to_sb3(GRPOVectorEnvironment(8, 4, table=TABLE, observation="profile"))
    assert GRPO("SharedPolicy", env, device="cpu").learn(8).num_timesteps == 1024


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_shared_policies(algorithm: type[OnPolicyAlgorithm], tmp_path: Path) -> None:
    """Actions in another order have their logits in that order, and every parameter learns."""
    model = learner(algorithm, SharedPolicyNetwork)
    policy, given, order = model.policy, th.rand(5, CONTEXTS), th.tensor([2, 0, 3, 1])
    logits = policy.get_distribution(given).distribution.logits
    assert logits.std() > 0
    swapped = policy.get_distribution(given[:, order]).distribution.logits
    th.testing.assert_close(swapped, logits[:, order])
    th.testing.assert_close(policy.predict_values(given[:, order]), policy.predict_values(given))
    before = {name: value.clone() for name, value in policy.named_parameters()}
    assert before["action_net.bias"].shape == (CONTEXTS,)
    model.learn(2048)
    assert not [name for name, value in policy.named_parameters() if value.equal(before[name])]
    greedy, _ = model.predict(np.eye(CONTEXTS, dtype=np.float32), deterministic=True)
    assert greedy.tolist() == [0, 1, 2, 3]
    model.save(tmp_path / "model.zip")
    again = algorithm.load(tmp_path / "model.zip", device="cpu")
    expected = policy.get_distribution(given).distribution.logits
    assert th.equal(again.policy.get_distribution(given).distribution.logits, expected)
    again.set_env(make_vec_env(BanditEnv, 16))
    assert again.learn(64).num_timesteps == 64


def test_arguments_of_ppo() -> None:
    told = ppo_arguments(PPOSettings(n_steps=4, clip_range=0.1, target_kl=0.05), 8)
    assert told == {
        "learning_rate": 1e-3, "n_steps": 4, "batch_size": 32,  # a small rollout is one batch
        "n_epochs": 4, "clip_range": 0.1, "normalize_advantage": True, "ent_coef": 0.01,
        "vf_coef": 0.5, "max_grad_norm": 0.5, "target_kl": 0.05, "gamma": 0.0, "gae_lambda": 1.0,
    }  # fmt: skip
    with pytest.raises(InputError, match="batch_size 100 does not divide the 512 samples of a ro"):
        ppo_arguments(PPOSettings(batch_size=100), 64)
    with pytest.raises(InputError, match="needs 2 samples"):
        ppo_arguments(PPOSettings(n_steps=1), 1)
