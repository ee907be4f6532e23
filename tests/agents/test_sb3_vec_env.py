from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from bandits import BanditEnv, grouped_bandit
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from maw_gym.agents.sb3.vec_env import SB3VecEnv, to_sb3


def sync(num_envs: int = 3, wrapper: Any = lambda env: env, **kwargs: Any) -> SyncVectorEnv:
    return SyncVectorEnv(
        [lambda: wrapper(BanditEnv(**kwargs))] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
    )


@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 2, 2), (1, 2, 3)])
def test_agrees_with_sb3s_own_vec_env_step_by_step(lengths: tuple[int, ...]) -> None:
    made = [partial(BanditEnv, length) for length in lengths]
    made.append(lambda: gym.wrappers.TimeLimit(BanditEnv(2), lengths[0]))
    ours: Any = SB3VecEnv(SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP))
    theirs: Any = DummyVecEnv(made)
    actions = np.random.default_rng(0).integers(4, size=(12, 4))
    for env in (ours, theirs):
        env.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    for action in actions:
        mine, other = ours.step(action), theirs.step(action)
        for i in range(3):  # observations, rewards, dones: values and types
            np.testing.assert_array_equal(mine[i], other[i])
            assert mine[i].dtype == other[i].dtype
        for my_info, other_info, done in zip(mine[3], other[3], mine[2], strict=True):
            truncated = other_info.pop("TimeLimit.truncated")
            assert my_info.pop("TimeLimit.truncated", None) == (truncated if done else None)
            if done:
                np.testing.assert_array_equal(
                    my_info.pop("terminal_observation"), other_info.pop("terminal_observation")
                )
            assert my_info == other_info
        assert ours.reset_infos == theirs.reset_infos


def test_infos_of_the_finished_episode_and_of_the_next_in_copies() -> None:
    env: Any = grouped_bandit(4, 2, query_order="sequential")
    adapted = SB3VecEnv(env)
    first, own_first = adapted.reset(), env._observations
    assert [info["query"] for info in adapted.reset_infos] == [0, 0, 1, 1]
    observations, rewards, dones, infos = adapted.step(np.array([0, 1, 0, 1]))
    assert [info["query"] for info in adapted.reset_infos] == [2, 2, 3, 3]
    own_first[:] = env._observations[:] = 0  # as environments do that reuse their arrays
    assert first.argmax(1).tolist() == [0, 0, 1, 1]
    assert observations.argmax(1).tolist() == [2, 2, 3, 3]
    assert (rewards.tolist(), rewards.dtype) == ([1.0, 0.0, 0.0, 1.0], np.float32)
    assert dones.tolist() == [True] * 4
    assert [info["query"] for info in infos] == [0, 0, 1, 1]
    assert [info["regret"] for info in infos] == [0.0, 1.0, 1.0, 0.0]
    assert [info["terminal_observation"].argmax() for info in infos] == [0, 0, 1, 1]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED, None])
def test_other_autoreset_modes_are_refused(mode: AutoresetMode | None) -> None:
    env = grouped_bandit(2, 1)
    env.metadata = {"autoreset_mode": mode}
    message = r"AutoresetMode\.SAME_STEP\}\); in NEXT_STEP mode every second step of a one-step ep"
    with pytest.raises(ValueError, match=message):
        SB3VecEnv(env)


def test_an_episode_without_final_observation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = grouped_bandit(4, 2)
    step = env.step
    monkeypatch.setattr(env, "step", lambda actions: (*step(actions)[:4], {}))
    adapted = SB3VecEnv(env)
    adapted.reset()
    with pytest.raises(ValueError, match="without final_obs"):
        adapted.step(np.zeros(4, int))


def test_seeds_and_options() -> None:
    adapted = SB3VecEnv(grouped_bandit(32, 1))
    assert list(adapted.seed(7)) == list(range(7, 39))
    first = adapted.reset()
    assert not np.array_equal(adapted.reset(), first)  # a seed is used once
    adapted.seed(7)
    np.testing.assert_array_equal(adapted.reset(), first)
    adapted.set_options({"query_id": "q3"})
    assert adapted.reset().argmax(1).tolist() == [3] * 32
    adapted.set_options([{"query_id": "q0"}, *[{}] * 31])
    with pytest.raises(ValueError, match="one set of options"):
        adapted.reset()


def test_attributes_and_methods_of_single_environments_are_those_of_sb3s_own_vec_env() -> None:
    adapted = SB3VecEnv(sync(render_mode="rgb_array"))
    for env in (adapted, DummyVecEnv([lambda: BanditEnv(render_mode="rgb_array")] * 3)):
        env.set_options({"context": 1})
        env.reset()
        assert env.render_mode == "rgb_array"
        assert env.get_attr("context") == [1, 1, 1]
        env.set_attr("context", 3, indices=1)
        assert env.get_attr("context", indices=[1, 2]) == [3, 1]
        assert env.env_method("context_number", 10, indices=[0, 1]) == [11, 13]
        env.set_attr("difficulty", 5)  # a new one
        env.set_attr("label", "first", indices=0)
        assert (env.get_attr("difficulty"), env.get_attr("label", 0)) == ([5, 5, 5], ["first"])
        with pytest.raises(AttributeError):
            env.get_attr("label")
        assert not env.has_attr("nothing")
        assert env.env_is_wrapped(Monitor) == [False, False, False]
    assert SB3VecEnv(sync(wrapper=Monitor)).env_is_wrapped(Monitor) == [True] * 3
    frame = adapted.render()
    assert frame is not None
    assert frame.shape == (4, 4, 3)  # four tiles of 2 x 2, the last one black
    adapted.close()


def test_attributes_of_environments_that_are_one_object() -> None:
    adapted = SB3VecEnv(RecordEpisodeStatistics(grouped_bandit(4, 2)))
    assert adapted.render_mode is None
    assert adapted.get_attr("group_size") == [2, 2, 2, 2]
    adapted.set_attr("label", "mine")
    assert adapted.get_attr("label") == ["mine"] * 4
    assert adapted.env_method("get_state", indices=range(4))[0]["position"] == 0
    assert adapted.env_is_wrapped(Monitor) == [False] * 4
    assert not adapted.has_attr("nothing")
    with pytest.raises(ValueError, match="answers for all its rows at once"):
        adapted.set_attr("label", "mine", indices=[0])
    with pytest.raises(ValueError, match="answers for all its rows at once"):
        adapted.env_method("get_state", indices=2)


def test_other_processes_survive_being_asked_for_an_attribute_they_lack() -> None:
    envs = AsyncVectorEnv([BanditEnv] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    adapted = SB3VecEnv(envs)
    assert adapted.has_attr("spec")
    assert not adapted.has_attr("group_size")
    assert len(adapted.reset()) == 2
    adapted.close()


def test_monitor_and_sb3s_learners(tmp_path: Any) -> None:
    env = to_sb3(grouped_bandit(16, 4), str(tmp_path / "log"))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=128, seed=0, device="cpu").learn(256)
    assert model.ep_info_buffer is not None
    assert {info["l"] for info in model.ep_info_buffer} == {1}
    assert len((tmp_path / "log.monitor.csv").read_text().splitlines()) > 256
    env.close()


def test_groups_of_single_environments_meet_the_same_contexts() -> None:
    env = to_sb3(sync(8), group_size=4)  # nobody gives a seed
    seen = [env.reset()] + [env.step(np.arange(8) % 4)[0] for _ in range(9)]
    contexts = np.array(seen).argmax(-1).reshape(10, 2, 4)
    assert (contexts == contexts[..., :1]).all()
    assert (contexts[:, 0] != contexts[:, 1]).any()
    assert len(np.unique(contexts[:, 0])) > 1
    assert env.get_attr("group_size") == [4] * 8


def test_groups_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="8 environments do not divide into such groups"):
        to_sb3(sync(8), group_size=3)
    with pytest.raises(ValueError, match=r"group_size=2\.0: must be a whole number"):
        to_sb3(sync(8), group_size=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give group_size where it is made, if it takes one"):
        to_sb3(grouped_bandit(8, 1), group_size=2)
