import numpy as np
import pytest
import torch
from hand_made import random_table

from agents import GRPO, GRPOPolicyNetwork, SharedPolicyNetwork, router_from_model
from agents.networks import is_shared, new_router, standardisation
from agents.sb3.vec_env import to_sb3
from agents.settings import check_network
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError

QUERIES, DEPTHS = 20, 5


def test_standardisation_by_hand() -> None:
    mean, scale = standardisation([[1.0, 5.0], [3.0, 5.0]])
    assert mean.tolist() == [2.0, 5.0]
    assert scale.tolist() == [1.0, 1.0]
    assert standardisation([[0.0], [4.0]])[1].tolist() == [0.5]


def test_numbers_standardised_together_keep_what_differs_between_depths() -> None:
    # Two depths: 0, 2, 2, 4 of the first kind (mean 2, variance 2), 7 throughout of the second.
    mean, scale = standardisation([[0.0, 2.0, 7.0, 7.0], [2.0, 4.0, 7.0, 7.0]], together=2)
    assert mean.tolist() == [2.0, 2.0, 7.0, 7.0]
    np.testing.assert_allclose(scale, [2**-0.5, 2**-0.5, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("network", "observation", "expected"),
    [
        ("auto", ("profile",), True),
        ("auto", ("retrieval", "profile"), True),
        ("auto", ("profile", "attention"), False),
        ("auto", ("content",), False),
        ("mlp", ("profile",), False),
        ("shared", ("profile",), True),
    ],
)
def test_which_network(network: str, observation: tuple[str, ...], expected: bool) -> None:
    assert is_shared(network, observation) is expected


def test_networks_that_cannot_be() -> None:
    with pytest.raises(InputError, match="unknown network 'deep'; choose one of auto, shared, mlp"):
        check_network("deep", ("profile",))
    with pytest.raises(InputError, match="observation block 'content' has none; leave it out or"):
        check_network("shared", ("profile", "content"))


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
    actor = router_from_model(GRPO(policy, to_sb3(env), device="cpu"), observation, {})
    assert [tuple(linear.weight.shape) for linear in actor.linears] == shapes
    given = torch.from_numpy(table.observation(observation))
    routers = [
        new_router(
            random_table(QUERIES, DEPTHS),
            observation,
            "auto",
            {},
            torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    assert [tuple(linear.weight.shape) for linear in routers[0].linears] == shapes
    logits = [router(given).detach() for router in routers]
    assert logits[0].shape == (QUERIES, DEPTHS)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    np.testing.assert_allclose(logits[0].softmax(-1), 0.2, atol=0.02)
