"""The vector form through Gymnasium: make_vec, its wrappers, autoreset disabled."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers
from hand_made import APPLE, BERRY, IDS, TABLE, HandMadeTask, random_table
from walking import walking

import maw_gym.envs.queries
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.registration import register_environments
from maw_gym.envs.vector_environment import GRPOVectorEnvironment

register_environments()


@pytest.fixture
def served(monkeypatch):
    task = HandMadeTask()
    monkeypatch.setattr(maw_gym.envs.queries, "load_task", lambda *_, **__: task)


@pytest.mark.usefixtures("served")
def test_make_vec_takes_the_vector_form():
    envs = gym.make_vec("MAWDepth-v0", num_envs=64, group_size=8, observation=["profile"])
    assert isinstance(envs, GRPOVectorEnvironment)
    assert (envs.num_envs, envs.group_size) == (64, 8)
    assert envs.observation_space.shape == (64, 8)
    assert envs.spec.kwargs["group_size"] == 8
    again = gym.make_vec(envs.spec)
    assert (again.num_envs, again.group_size) == (64, 8)


@pytest.mark.usefixtures("served")
def test_make_vec_of_scalar_environments_works_too():
    envs = gym.make_vec("MAWDepth-v0", num_envs=3, vectorization_mode="sync")
    assert isinstance(envs, SyncVectorEnv)
    envs.reset(seed=0)
    assert envs.step(np.zeros(3, dtype=int))[2].all()


@pytest.mark.skipif(
    gym.__version__.startswith("1.2."),
    reason="RecordEpisodeStatistics knows SAME_STEP since Gymnasium 1.3",
)
def test_episode_statistics_wrapper():
    envs = wrappers.RecordEpisodeStatistics(walking(2))
    envs.reset()
    for expected in ([0.3, 0.7], [0.3, 0.3]):
        _, rewards, _, _, infos = envs.step(np.zeros(2, dtype=int))
        assert rewards == pytest.approx(expected, abs=1e-7)
        assert infos["episode"]["r"] == pytest.approx(expected, abs=1e-7)
        assert infos["episode"]["l"].tolist() == [1, 1]
    assert envs.episode_count == 4


def test_list_of_infos_wrapper():
    envs = wrappers.DictInfoToList(wrappers.RecordEpisodeStatistics(walking(2)))
    _, infos = envs.reset()
    assert infos == [{"query": 0}, {"query": 1}]
    infos = envs.step(np.array([1, 2]))[4]
    assert set(infos[1]) == {"query", "final_obs", "final_info", "episode"}
    assert IDS[infos[1]["query"]] == APPLE
    assert infos[1]["final_obs"].argmax() == 1
    assert IDS[infos[1]["final_info"]["query"]] == BERRY
    assert infos[1]["final_info"]["regret"] == pytest.approx(0.4, abs=1e-7)


def test_reward_wrapper():
    envs = wrappers.TransformReward(walking(2), lambda reward: 10 * reward)
    envs.reset()
    assert envs.step([0, 0])[1] == pytest.approx([3, 7], abs=1e-6)


def test_disabled_autoreset_by_hand():
    envs = walking(2, autoreset_mode=AutoresetMode.DISABLED)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert GRPOVectorEnvironment.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    envs.reset(seed=0)
    observations, rewards, terminations, _, infos = envs.step(np.array([2, 3]))
    assert observations.argmax(axis=1).tolist() == [0, 1]  # those that were chosen on
    assert rewards == pytest.approx([0.7, 0.33], abs=1e-7)
    assert terminations.tolist() == [True, True]
    assert IDS[infos["query"]].tolist() == [APPLE, BERRY]
    assert infos["regret"] == pytest.approx([0.0, 0.37], abs=1e-7)
    assert "final_obs" not in infos
    with pytest.raises(ResetNeeded, match="2 of 2 episodes have ended"):
        envs.step(np.array([0, 0]))
    observations, infos = envs.reset(options={"reset_mask": np.array([False, True])})
    assert observations.argmax(axis=1).tolist() == [0, 2]
    assert infos["query"].tolist() == [-1, 2]
    with pytest.raises(ResetNeeded, match="1 of 2 episodes have ended"):
        envs.step(np.array([0, 0]))
    state = envs.get_state()
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.step(np.array([3, 3]))[1] == pytest.approx([0.43, 0.5], abs=1e-7)
    envs.set_state(state)
    with pytest.raises(ResetNeeded, match="1 of 2 episodes have ended"):
        envs.step(np.array([0, 0]))


def test_disabled_autoreset_in_the_form_of_gymnasiums_own():
    table = random_table(1, 3)
    mode = AutoresetMode.DISABLED
    ours = GRPOVectorEnvironment(4, table=table, autoreset_mode="Disabled")
    theirs = SyncVectorEnv([lambda: GRPOEnvironment(table=table)] * 4, autoreset_mode=mode)
    actions = np.array([0, 2, 1, 0])
    for _ in range(2):
        for envs in (ours, theirs):
            envs.reset(seed=0)
        mine, other = ours.step(actions), theirs.step(actions)
        for left, right in zip(mine[:4], other[:4], strict=True):
            assert np.array_equal(left, right)
            assert left.dtype == right.dtype
        assert mine[4].keys() == other[4].keys()
        for name in other[4]:
            assert np.array_equal(mine[4][name], other[4][name])


def test_gymnasiums_wrappers_of_vector_observations():
    envs = gym.make_vec("MAWDepth-v0", 2, table=TABLE, autoreset_mode="Disabled")
    halved = wrappers.TransformObservation(envs, lambda observations: observations / 2)
    flat = wrappers.ReshapeObservation(halved, (8, 8))
    observations, _ = flat.reset(seed=0)
    assert observations.shape == (2, 8, 8)
    assert observations.max() == 0.5
    assert flat.step(np.array([0, 1]))[0].max() == 0.5
