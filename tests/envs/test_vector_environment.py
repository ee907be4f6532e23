import copy
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hand_made import APPLE, BERRY, CHERRY, IDS, REGRET, REWARD, TABLE, random_table
from hypothesis import given, settings
from hypothesis import strategies as st
from walking import walking

from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.registration import register_environments
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError

register_environments()
TERMS = ("entropy", "focus", "alignment", "regret", "random")


def test_same_step_autoreset_by_hand():
    envs = walking(2)
    observations, infos = envs.reset(seed=0)
    assert observations.argmax(axis=1).tolist() == [0, 1]
    assert IDS[infos["query"]].tolist() == [APPLE, BERRY]
    assert infos["_query"].tolist() == [True, True]
    assert set(infos) == {"query", "_query"}

    observations, rewards, terminations, truncations, infos = envs.step(np.array([2, 3]))
    assert observations.argmax(axis=1).tolist() == [2, 0]
    assert rewards == pytest.approx([0.7, 0.33], abs=1e-7)
    assert terminations.tolist() == [True, True]
    assert truncations.tolist() == [False, False]
    assert IDS[infos["query"]].tolist() == [CHERRY, APPLE]
    assert [row.argmax() for row in infos["final_obs"]] == [0, 1]
    final = infos["final_info"]
    assert IDS[final["query"]].tolist() == [APPLE, BERRY]
    assert final["entropy"] == pytest.approx([0.6, 0.9], abs=1e-7)
    assert final["focus"] == pytest.approx([0.4, 0.2], abs=1e-7)
    assert final["alignment"] == pytest.approx([1.0, 0.0], abs=1e-7)
    assert final["regret"] == pytest.approx([0.0, 0.37], abs=1e-7)
    for masked in (infos, final):
        for name in list(masked):
            if not name.startswith("_"):
                assert masked[f"_{name}"].tolist() == [True, True]

    observations, rewards, *_, infos = envs.step(np.array([0, 1]))
    assert rewards == pytest.approx([0.3, 0.5], abs=1e-7)
    assert IDS[infos["final_info"]["query"]].tolist() == [CHERRY, APPLE]
    assert IDS[infos["query"]].tolist() == [BERRY, CHERRY]


def test_metadata_and_spaces():
    envs = walking(5)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.metadata["render_fps"] == 1
    assert envs.single_observation_space.shape == (64,)
    assert envs.observation_space.shape == (5, 64)
    assert envs.single_action_space == gym.spaces.Discrete(4)
    assert envs.reset()[0] in envs.observation_space
    observations, rewards, terminations, truncations, _ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert (rewards.dtype, rewards.shape) == (np.float64, (5,))
    assert terminations.dtype == truncations.dtype == np.bool_


def test_same_form_as_gymnasiums_own_vector_environment():
    """One query, so that sub-environments that walk by themselves meet the same one."""
    table = random_table(1, 3)
    ours = GRPOVectorEnvironment(4, table=table)
    theirs = SyncVectorEnv(
        [lambda: GRPOEnvironment(table=table)] * 4, autoreset_mode=AutoresetMode.SAME_STEP
    )

    def compare(one, two):
        if isinstance(one, dict):
            assert one.keys() == two.keys()
            for name in one:
                # Theirs may miss some; ours are all there, so that they are one array of numbers.
                compare(one[name], np.stack(two[name]) if name == "final_obs" else two[name])
        else:
            assert one.dtype == two.dtype
            assert one.shape == two.shape
            for left, right in zip(one, two, strict=True):
                assert np.array_equal(left, right)

    for left, right in zip(ours.reset(seed=0), theirs.reset(seed=0), strict=True):
        compare(left, right)
    actions = np.array([0, 2, 1, 0])
    for _ in range(2):
        for left, right in zip(ours.step(actions), theirs.step(actions), strict=True):
            compare(left, right)


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 9),
    depths=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 3),
    order=st.sampled_from(["random", "sequential"]),
    alignment=st.sampled_from(["ndcg", "listwise"]),
    observation=st.sampled_from(["attention", "profile", ("profile", "content")]),
    seed=st.integers(0, 2**31),
)
def test_vector_and_scalar_environment_agree_step_by_step(
    queries, depths, groups, group_size, order, alignment, observation, seed
):
    choices = {
        "table": random_table(queries, depths, seed % 7),
        "alignment": alignment,
        "observation": observation,
        "query_order": order,
        "reward_weights": (0.2, 0.5, 0.3),
    }
    num_envs = groups * group_size
    envs = GRPOVectorEnvironment(num_envs, group_size, **choices)
    env = GRPOEnvironment(**choices)
    draw = np.random.default_rng(seed)
    observations, infos = envs.reset(seed=seed)
    walk = GRPOEnvironment(**choices)
    walked = walk.reset(seed=seed)[1]["query"]
    for _ in range(4):
        shown = infos["query"]
        if order == "sequential" or groups == 1:  # then one scalar environment meets the same
            expected = [walked]
            for _ in range(groups - 1):
                expected.append(walk.reset()[1]["query"])
            assert shown.tolist() == [name for name in expected for _ in range(group_size)]
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
            for name in ("query", *TERMS):
                assert infos["final_info"][name][place] == info[name]


def test_groups_share_queries_and_neighbours_walk():
    envs = walking(6, group_size=2)
    observations, infos = envs.reset()
    assert IDS[infos["query"]].tolist() == [APPLE, APPLE, BERRY, BERRY, CHERRY, CHERRY]
    assert observations.argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2]
    envs = walking(4, group_size=2)
    envs.reset()
    infos = envs.step(np.zeros(4, dtype=int))[4]
    assert IDS[infos["query"]].tolist() == [CHERRY, CHERRY, APPLE, APPLE]


def test_a_reset_goes_on_with_the_walk_and_a_seed_restarts_it():
    envs = walking(2)
    assert IDS[envs.reset()[1]["query"]].tolist() == [APPLE, BERRY]
    assert IDS[envs.reset()[1]["query"]].tolist() == [CHERRY, APPLE]
    assert IDS[envs.reset(seed=1)[1]["query"]].tolist() == [APPLE, BERRY]


def test_random_groups_share_queries():
    envs = GRPOVectorEnvironment(32, 4, table=random_table(50, 2))
    seen = [envs.reset(seed=3)[1]["query"]]
    seen += [envs.step(np.zeros(32, dtype=int))[4]["query"] for _ in range(5)]
    for names in seen:
        for group in names.reshape(8, 4):
            assert len(set(group)) == 1
    assert len({name for names in seen for name in names}) > 20


def test_random_order_is_uniform():
    envs = GRPOVectorEnvironment(4000, table=random_table(4, 2))
    names = envs.reset(seed=1)[1]["query"].tolist()
    counts = [names.count(row) for row in range(4)]
    assert sum(counts) == 4000
    assert all(900 < count < 1100 for count in counts)


def test_same_seed_same_queries():
    def run(seed):
        envs = GRPOVectorEnvironment(8, table=random_table(100, 2))
        names = envs.reset(seed=seed)[1]["query"].tolist()
        for _ in range(3):
            names += envs.step(np.zeros(8, dtype=int))[4]["query"].tolist()
        return names

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(None) != run(None)
    envs = GRPOVectorEnvironment(8, table=random_table(100, 2))
    first = envs.reset(seed=5)[1]["query"].tolist()
    assert envs.reset(seed=np.int64(5))[1]["query"].tolist() == first
    assert envs.reset()[1]["query"].tolist() != first


def test_a_list_of_seeds_is_refused():
    with pytest.raises(InputError, match=r"one integer.*\[1, 2\]"):
        walking(2).reset(seed=[1, 2])


def test_returned_arrays_are_never_written_to_again():
    envs = GRPOVectorEnvironment(16, table=random_table(5, 3))
    returned = [envs.reset(seed=0)]
    returned += [envs.step(np.full(16, depth)) for depth in (0, 2, 1, 1, 0)]
    kept = [copy.deepcopy(result) for result in returned]
    envs.reset(seed=1)
    for _ in range(5):
        envs.step(np.zeros(16, dtype=int))

    def same(one, two):
        if isinstance(one, dict):
            return all(same(one[name], two[name]) for name in one)
        if one.dtype == object:
            return all(np.array_equal(left, right) for left, right in zip(one, two, strict=True))
        return np.array_equal(one, two)

    for left, right in zip(returned, kept, strict=True):
        assert all(same(one, two) for one, two in zip(left, right, strict=True))
    arrays = [result[0] for result in returned] + [result[1] for result in returned[1:]]
    for place, array in enumerate(arrays):
        assert array.flags.writeable
        for other in arrays[place + 1 :]:
            assert not np.shares_memory(array, other)


def test_what_a_caller_changes_stays_with_the_caller():
    envs = walking(3)
    observations, infos = envs.reset()
    infos["query"][:] = 2
    _, rewards, _, _, infos = envs.step(np.zeros(3, dtype=int))
    assert IDS[infos["final_info"]["query"]].tolist() == [APPLE, BERRY, CHERRY]
    assert infos["final_obs"] is not observations
    assert infos["final_obs"].tolist() == observations.tolist()
    rewards += 9
    with pytest.raises(ValueError, match="read-only"):
        infos["final_obs"][0][0] = 0
    infos["query"][:] = 2
    infos["final_info"]["query"][:] = 2
    _, rewards, _, _, infos = envs.step(np.zeros(3, dtype=int))
    assert rewards == pytest.approx([0.3, 0.7, 0.3], abs=1e-7)
    assert IDS[infos["final_info"]["query"]].tolist() == [APPLE, BERRY, CHERRY]


def test_infos_read_later_are_those_of_their_own_step():
    envs = walking(2)
    envs.reset()
    infos = [envs.step([0, 0])[4] for _ in range(3)]
    envs.reset(seed=0)
    shown = [one["query"].tolist() for one in infos]
    assert shown == [[2, 0], [1, 2], [0, 1]]
    finished = [one["final_info"]["query"].tolist() for one in infos]
    assert finished == [[0, 1], *shown[:2]]
    assert [row.argmax() for row in infos[1]["final_obs"]] == [2, 0]


@pytest.mark.parametrize(
    "actions",
    [
        [0, 1, 2],
        np.array([0, 1, 2], np.int8),
        np.array([0, 1, 2], np.uint64),
        (0, 1, 2),
        np.arange(6)[::2] // 2,
    ],
)
def test_integers_of_every_kind_are_actions(actions):
    envs = walking(3)
    envs.reset()
    expected = [REWARD[0][0], REWARD[1][1], REWARD[2][2]]
    _, rewards, _, _, infos = envs.step(actions)
    assert rewards == pytest.approx(expected, abs=1e-7)
    regret = [REGRET[0][0], REGRET[1][1], REGRET[2][2]]
    assert infos["final_info"]["regret"] == pytest.approx(regret, abs=1e-7)


@pytest.mark.parametrize(
    ("actions", "shown"),
    [
        (np.array([0, 4, 1]), "sub-environment 1 got 4"),
        (np.array([0, 1, -1]), "sub-environment 2 got -1"),
        (np.array([2**64 - 1, 0, 0], np.uint64), "sub-environment 0 got 18446744073709551615"),
        (np.array([0.0, 1.0, 2.0]), "float64"),
        (np.array([0.0, np.nan, 2.0]), "nan"),
        (np.array([True, False, True]), "bool"),
        (np.array([0, 1]), "(2,)"),
        (np.zeros((3, 1), int), "(3, 1)"),
        ([[0], [1, 2], 3], "[[0], [1, 2], 3]"),
        (2, "got 2"),
        (None, "None"),
    ],
)
def test_other_actions_are_refused(actions, shown):
    envs = walking(3)
    envs.reset()
    with pytest.raises(InputError) as caught:
        envs.step(actions)
    assert shown in str(caught.value)
    assert "from 0 to 3" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert IDS[envs.step([0, 0, 0])[4]["final_info"]["query"]].tolist() == [APPLE, BERRY, CHERRY]


def test_step_needs_a_reset():
    with pytest.raises(ResetNeeded):
        walking(2).step([0, 0])


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"num_envs": 6, "group_size": 4}, "4 does not divide 6"),
        ({"num_envs": 2, "group_size": 4}, "4 does not divide 2"),
        ({"num_envs": 0}, "num_envs must be an integer from 1 to 1,048,576; got 0"),
        ({"num_envs": 10**12}, "got 1000000000000"),
        ({"num_envs": 2, "group_size": 0}, "got 0"),
        ({"num_envs": 2.0}, "got 2.0"),
        (
            {"num_envs": 2, "render_mode": "rgb_array"},
            "'rgb_array'; add vectorization_mode=\"sync\"",
        ),
        ({"num_envs": 2, "autoreset_mode": "NextStep"}, "SAME_STEP or AutoresetMode.DISABLED, got"),
        ({"num_envs": 2, "alignment": "map"}, "'map'"),
    ],
)
def test_unusable_settings(counts, shown):
    with pytest.raises(InputError) as caught:
        GRPOVectorEnvironment(table=TABLE, **counts)
    assert shown in str(caught.value)


def test_queries_may_be_chosen():
    envs = walking(3)
    assert IDS[envs.reset(options={"query_id": BERRY})[1]["query"]].tolist() == [BERRY] * 3
    names = [CHERRY, APPLE, CHERRY]
    observations, infos = envs.reset(options={"query_id": names})
    assert IDS[infos["query"]].tolist() == names
    assert observations.argmax(axis=1).tolist() == [2, 0, 2]
    _, rewards, _, _, infos = envs.step([3, 2, 0])
    assert rewards == pytest.approx([0.5, 0.7, 0.3], abs=1e-7)
    assert IDS[infos["query"]].tolist() == [APPLE, BERRY, CHERRY]  # the walk had not begun


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"query_id": "fruit/bery"}, "fruit/berry"),
        ({"query_id": [APPLE, BERRY]}, "got 2"),
        ({"query_id": [APPLE, BERRY, APPLE, APPLE]}, "same within each group of 2"),
        ({"reset_mask": np.array([True, False, True, True])}, "same within each group of 2"),
        ({"reset_mask": np.array([1, 1, 0, 0])}, "int64"),
        ({"reset_mask": np.zeros(4, bool)}, "at least one of them True"),
        ({"reset_mask": [True, True]}, "(2,)"),
        ({"mask": None}, "'mask'"),
    ],
)
def test_unusable_options_leave_everything_as_it_was(options, shown):
    envs = walking(4, group_size=2)
    envs.reset()
    with pytest.raises(InputError) as caught:
        envs.reset(seed=0, options=options)
    assert shown in str(caught.value)
    infos = envs.step([0, 0, 0, 0])[4]
    assert IDS[infos["final_info"]["query"]].tolist() == [APPLE, APPLE, BERRY, BERRY]
    assert IDS[infos["query"]].tolist() == [CHERRY, CHERRY, APPLE, APPLE]


def test_reset_mask_resets_some():
    envs = walking(4, group_size=2)
    mask = np.array([False, False, True, True])
    with pytest.raises(ResetNeeded):
        envs.reset(options={"reset_mask": mask})
    envs.reset()
    observations, infos = envs.reset(options={"reset_mask": mask})
    assert observations.argmax(axis=1).tolist() == [0, 0, 2, 2]
    assert infos["query"].tolist() == [-1, -1, 2, 2]
    assert infos["_query"].tolist() == [False, False, True, True]
    final = envs.step([0, 0, 0, 0])[4]["final_info"]
    assert IDS[final["query"]].tolist() == [APPLE, APPLE, CHERRY, CHERRY]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))]
)
def test_copies_go_on_where_the_original_was(duplicate):
    envs = GRPOVectorEnvironment(6, 2, table=random_table(20, 3))
    envs.reset(seed=1)
    twin = duplicate(envs)
    for _ in range(3):
        left, right = envs.step([0, 1, 2, 0, 1, 2]), twin.step([0, 1, 2, 0, 1, 2])
        assert np.array_equal(left[0], right[0])
        assert np.array_equal(left[1], right[1])
        assert left[4]["query"].tolist() == right[4]["query"].tolist()
    assert not right[4]["final_obs"][0].flags.writeable


def test_frames_come_from_single_environments():
    envs = gym.make_vec(
        "MAWDepth-v0", 2, vectorization_mode="sync", table=TABLE, render_mode="rgb_array"
    )
    envs.reset(seed=0)
    assert [frame.shape[-1] for frame in envs.render()] == [3, 3]


GROUPED = replace(TABLE, groups=("red", "red", "blue"))


def test_groups_are_shown_equally_often_if_asked_for():
    env = GRPOVectorEnvironment(num_envs=20_000, table=GROUPED, balance=0)
    _, infos = env.reset(seed=0)
    shown = dict(zip(*np.unique(IDS[infos["query"]].astype(str), return_counts=True), strict=True))
    # Half for the one blue query, a quarter for each red one.
    for query, share in {APPLE: 0.25, BERRY: 0.25, CHERRY: 0.5}.items():
        assert shown[query] / 20_000 == pytest.approx(share, abs=0.015)
    again = GRPOVectorEnvironment(num_envs=20_000, table=GROUPED, balance=1)
    plain = GRPOVectorEnvironment(num_envs=20_000, table=TABLE)
    assert again.reset(seed=1)[1]["query"].tolist() == plain.reset(seed=1)[1]["query"].tolist()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"balance": 1.5}, "balance must be a number from 0"),
        ({"balance": 0}, "balance 0 needs queries in groups, and these have none"),
        (
            {"balance": 0, "table": GROUPED, "query_order": "sequential"},
            "balance 0 is for random draws, and query_order is 'sequential'",
        ),
    ],
)
def test_balance_that_cannot_be(asked, message):
    with pytest.raises(InputError, match=message):
        GRPOVectorEnvironment(**{"table": TABLE, **asked})
