import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers
from hand_made import APPLE, BERRY, CHERRY, REWARD, TABLE, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError

TOLD = ("query", "entropy", "focus", "alignment", "regret", "random")
SAME_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
GROUPED = replace(TABLE, groups=("red", "red", "blue"))


def walking(num_envs, **changes):
    """The hand-made table, walked through in its own order."""
    return GRPOVectorEnvironment(num_envs, table=TABLE, query_order="sequential", **changes)


def queries(infos):
    return infos["query"].tolist()


def test_disabled_autoreset_by_hand():
    envs = walking(2, autoreset_mode=DISABLED)
    assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is DISABLED
    assert GRPOVectorEnvironment.metadata["autoreset_mode"] is SAME_STEP
    envs.reset(seed=0)
    observations, rewards, *_, infos = envs.step(np.array([2, 3]))
    assert observations.argmax(axis=1).tolist() == queries(infos) == [0, 1]  # those chosen on
    assert rewards == pytest.approx([0.7, 0.33], abs=1e-7)
    assert infos["regret"] == pytest.approx([0.0, 0.37], abs=1e-7)
    infos["query"][:] = 2  # which the environment does not read again
    with pytest.raises(ResetNeeded, match="2 of 2 episodes have ended"):
        envs.step([0, 0])
    observations, infos = envs.reset(options={"reset_mask": np.array([False, True])})
    assert observations.argmax(axis=1).tolist() == [0, 2]
    assert queries(infos) == [-1, 2]
    state = envs.get_state()
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.step([3, 3])[1] == pytest.approx([0.43, 0.5], abs=1e-7)
    envs.set_state(state)
    with pytest.raises(ResetNeeded, match="1 of 2 episodes have ended"):
        envs.step([0, 0])


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_same_form_as_gymnasiums_own_vector_environment(mode):
    """One query, so that sub-environments that walk by themselves meet the same one."""
    table = random_table(1, 3)
    ours = GRPOVectorEnvironment(4, table=table, autoreset_mode=mode.value)
    theirs = SyncVectorEnv([lambda: GRPOEnvironment(table=table)] * 4, autoreset_mode=mode)

    def compare(one, two):
        if isinstance(one, dict):
            assert one.keys() == two.keys()
            for name in one:
                # Theirs may miss some; ours are all there, so that they are one array of numbers.
                compare(one[name], np.stack(two[name]) if name == "final_obs" else two[name])
        else:
            assert one.dtype == two.dtype
            assert np.array_equal(one, two)

    actions = np.array([0, 2, 1, 0])
    for _ in range(2):
        for step in (lambda envs: envs.reset(seed=0), lambda envs: envs.step(actions)):
            for left, right in zip(step(ours), step(theirs), strict=True):
                compare(left, right)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    depths=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 3),
    order=st.sampled_from(["random", "sequential"]),
    alignment=st.sampled_from(["ndcg", "listwise"]),
    observation=st.sampled_from(["attention", "profile", ("profile", "content")]),
    seed=st.integers(0, 2**31),
)
def test_vector_and_scalar_environment_agree_step_by_step(
    count, depths, groups, group_size, order, alignment, observation, seed
):
    choices = {
        "table": random_table(count, depths, seed % 7),
        "alignment": alignment,
        "observation": observation,
        "query_order": order,
        "reward_weights": (0.2, 0.5, 0.3),
    }
    num_envs = groups * group_size
    envs = GRPOVectorEnvironment(num_envs, group_size, **choices)
    env, walk = GRPOEnvironment(**choices), GRPOEnvironment(**choices)
    draw = np.random.default_rng(seed)
    observations, infos = envs.reset(seed=seed)
    walked = walk.reset(seed=seed)[1]["query"]
    for _ in range(4):
        shown = infos["query"]
        if order == "sequential" or groups == 1:  # then one scalar environment meets the same
            expected = [walked, *(walk.reset()[1]["query"] for _ in range(groups - 1))]
            assert shown.tolist() == np.repeat(expected, group_size).tolist()
            walked = walk.reset()[1]["query"]
        actions = draw.integers(depths, size=num_envs)
        before = observations
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        for place in range(num_envs):
            first, _ = env.reset(options={"query_id": env.query_ids[shown[place]]})
            final, reward, terminated, truncated, info = env.step(actions[place])
            assert np.array_equal(before[place], first)
            assert np.array_equal(infos["final_obs"][place], final)
            assert rewards[place] == reward
            assert (terminations[place], truncations[place]) == (terminated, truncated)
            for name in TOLD:
                assert infos["final_info"][name][place] == info[name]


@pytest.mark.parametrize(
    "actions",
    [(0, 1, 2), np.int8([0, 1, 2]), np.uint64([0, 1, 2]), np.arange(6)[::2] // 2],
    ids=str,
)
def test_integers_of_every_kind_are_actions(actions):
    envs = walking(3)
    envs.reset()
    assert envs.step(actions)[1] == pytest.approx([REWARD[k][k] for k in range(3)], abs=1e-7)


def test_arrays_belong_to_the_caller_and_are_never_written_to_again():
    envs = GRPOVectorEnvironment(16, table=random_table(5, 3))
    returned = [envs.reset(seed=0)]
    returned += [envs.step(np.full(16, depth)) for depth in (0, 2, 1, 1, 0)]
    before = copy.deepcopy(returned)
    envs.reset(seed=1)
    for _ in range(5):
        envs.step(np.zeros(16, dtype=int))
    np.testing.assert_equal(returned, before)
    # The observations of finished episodes are those returned before, and not a copy.
    assert returned[1][4]["final_obs"] is returned[0][0]
    envs = walking(3)
    observations, infos = envs.reset()
    observations += 5
    infos["query"][:] = 2
    for _ in range(2):
        observations, rewards, _, _, infos = envs.step(np.zeros(3, dtype=int))
        assert rewards == pytest.approx([0.3, 0.7, 0.3], abs=1e-7)
        assert queries(infos["final_info"]) == [0, 1, 2]
        assert observations.sum() == 3
        for array in (observations, rewards, infos["query"], infos["final_info"]["query"]):
            array += 2


def test_groups_share_queries_and_neighbours_walk():
    envs = walking(4, group_size=2)
    assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is SAME_STEP
    observations, infos = envs.reset()
    assert observations in envs.observation_space
    assert queries(infos) == observations.argmax(axis=1).tolist() == [0, 0, 1, 1]
    observations, rewards, _, _, infos = envs.step(np.array([2, 3, 3, 1]))
    assert rewards == pytest.approx([0.7, 0.43, 0.33, 0.5], abs=1e-7)
    assert infos["final_info"]["regret"] == pytest.approx([0, 0.27, 0.37, 0.2], abs=1e-7)
    assert queries(infos) == observations.argmax(axis=1).tolist() == [2, 2, 0, 0]
    assert queries(envs.reset()[1]) == [1, 1, 2, 2]  # goes on with the walk
    assert queries(envs.reset(seed=1)[1]) == [0, 0, 1, 1]
    envs = GRPOVectorEnvironment(400, 4, table=random_table(50, 2))
    groups = envs.reset(seed=3)[1]["query"].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) > 20


def test_random_order_is_uniform_and_groups_equally_frequent_if_asked_for():
    def shares(table, **balance):
        envs = GRPOVectorEnvironment(20_000, table=table, **balance)
        return np.bincount(envs.reset(seed=1)[1]["query"]) / 20_000

    assert shares(TABLE) == pytest.approx([1 / 3] * 3, abs=0.015)
    assert shares(GROUPED, balance=1).tolist() == shares(TABLE).tolist()
    # Half for the one blue query, a quarter for each red one.
    assert shares(GROUPED, balance=0) == pytest.approx([0.25, 0.25, 0.5], abs=0.015)


def test_same_seed_same_queries():
    def run(seed):
        envs = GRPOVectorEnvironment(8, table=random_table(100, 2))
        return [queries(envs.reset(seed=seed)[1]), *(queries(envs.step([0] * 8)[4]) for _ in "abc")]

    assert run(5) == run(np.int64(5))
    assert run(5) != run(6)
    assert run(None) != run(None)


def test_queries_may_be_chosen_and_some_left():
    envs = walking(4, group_size=2)
    some = {"reset_mask": np.array([False, False, True, True])}
    with pytest.raises(ResetNeeded):
        envs.reset(options=some)
    assert queries(envs.reset(options={"query_id": BERRY})[1]) == [1, 1, 1, 1]
    observations, infos = envs.reset(options={"query_id": [CHERRY, CHERRY, APPLE, APPLE]})
    assert queries(infos) == observations.argmax(axis=1).tolist() == [2, 2, 0, 0]
    observations, infos = envs.reset(options=some)  # the walk had not begun
    assert observations.argmax(axis=1).tolist() == [2, 2, 0, 0]
    assert (queries(infos), infos["_query"].tolist()) == (
        [-1, -1, 0, 0],
        [False, False, True, True],
    )
    observations, _ = envs.reset(options=some | {"query_id": BERRY})
    assert observations.argmax(axis=1).tolist() == [2, 2, 1, 1]
    _, rewards, _, _, infos = envs.step([3, 2, 0, 1])
    assert rewards == pytest.approx([0.5, 0.3, 0.7, 0.5], abs=1e-7)
    assert queries(infos) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("query_id", "fruit/bery", "fruit/berry"),
        ("query_id", [APPLE, BERRY], "got 2"),
        ("query_id", 7, "got 1"),
        ("query_id", [APPLE, BERRY, APPLE, APPLE], "same within each group of 2"),
        ("reset_mask", [True, False, True, True], "same within each group of 2"),
        ("reset_mask", [1, 1, 0, 0], "int64"),
        ("reset_mask", [False] * 4, "at least one of them True"),
        ("reset_mask", [True, True], "(2,)"),
    ],
)
def test_unusable_options_leave_everything_as_it_was(option, value, shown):
    envs = walking(4, group_size=2)
    envs.reset()
    with pytest.raises(InputError) as caught:
        envs.reset(seed=0, options={option: value})
    assert shown in str(caught.value)
    infos = envs.step([0, 0, 0, 0])[4]
    assert queries(infos["final_info"]) == [0, 0, 1, 1]
    assert queries(infos) == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"num_envs": 6, "group_size": 4}, "4 does not divide 6"),
        ({"num_envs": 0}, "num_envs must be a whole number from 1 to 1048576, got 0"),
        ({"num_envs": 2.0}, "got 2.0"),
        ({"autoreset_mode": "NextStep"}, "SAME_STEP or AutoresetMode.DISABLED, got"),
        ({"balance": 1.5}, "balance must be a number from 0"),
        ({"balance": 0}, "balance 0 needs queries in groups, and these have none"),
        (
            {"balance": 0, "table": GROUPED, "query_order": "sequential"},
            "balance 0 is for random draws, and query_order is 'sequential'",
        ),
    ],
)
def test_unusable_settings(asked, shown):
    with pytest.raises(InputError) as caught:
        GRPOVectorEnvironment(**{"num_envs": 2, "table": TABLE, **asked})
    assert shown in str(caught.value)


def test_make_vec_takes_the_vector_form_or_scalar_environments(tiny_folder):
    asked = {"dataset": str(tiny_folder), "device": "cpu", "observation": ["profile"]}
    envs = gym.make_vec("MAWDepth-v0", num_envs=64, group_size=8, **asked)
    assert isinstance(envs, GRPOVectorEnvironment)
    assert envs.observation_space.shape == (64, 64)
    again = gym.make_vec(envs.spec)
    assert (again.num_envs, again.group_size) == (64, 8)
    mode = {"vectorization_mode": "sync", "render_mode": "rgb_array"}
    envs = gym.make_vec("MAWDepth-v0", num_envs=2, **mode, **asked)
    assert isinstance(envs, SyncVectorEnv)
    envs.reset(seed=0)
    assert envs.step(np.zeros(2, dtype=int))[2].all()
    assert [frame.shape[-1] for frame in envs.render()] == [3, 3]


def test_wrappers_of_observations():
    envs = gym.make_vec("MAWDepth-v0", 2, table=TABLE, autoreset_mode="Disabled")
    halved = wrappers.TransformObservation(envs, lambda observations: observations / 2)
    flat = wrappers.ReshapeObservation(halved, (8, 8))
    assert flat.reset(seed=0)[0].shape == (2, 8, 8)
    assert flat.step(np.array([0, 1]))[0].max() == 0.5


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_all_that_is_told_can_become_tensors(mode):
    envs = wrappers.NumpyToTorch(walking(2, autoreset_mode=mode))
    assert envs.reset(seed=0)[1]["query"].tolist() == [0, 1]
    infos = envs.step(torch.tensor([2, 3]))[4]
    final = infos.get("final_info", infos)
    assert all(isinstance(final[name], torch.Tensor) for name in TOLD)
