import copy
import pickle
import warnings

import cloudpickle
import dill
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import env_checker
from hand_made import APPLE, BERRY, CHERRY, IDS, REGRET, REWARD, TABLE, HandMadeTask, random_table
from stable_baselines3.common import env_checker as sb3_env_checker

import maw_gym.envs.environment
import maw_gym.envs.queries
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.registration import register_environments
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.tables.depth_table import BLOCKS

register_environments()


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """Serves the hand-made task under every name and records what was asked for."""
    asked = []
    task = HandMadeTask()

    def load_task(*settings, **named):
        asked.append((*settings, named))
        return task

    monkeypatch.setattr(maw_gym.envs.queries, "load_task", load_task)
    return asked


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("query", [0, 1, 2])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_every_reward_and_term_by_hand(query, depth):
    env = GRPOEnvironment(table=TABLE)
    query_id = TABLE.query_ids[query]
    shown, info = env.reset(options={"query_id": query_id})
    assert info == {"query": query}
    assert shown.tolist() == np.eye(3, 64)[query].tolist()
    observation, reward, terminated, truncated, info = env.step(depth)
    assert observation.tolist() == shown.tolist()
    assert reward == pytest.approx(REWARD[query][depth], abs=1e-7)
    assert (terminated, truncated) == (True, False)
    assert set(info) == {"query", "entropy", "focus", "alignment", "regret", "random"}
    assert IDS[info["query"]] == query_id
    assert info["entropy"] == pytest.approx(TABLE.entropy[query, depth], abs=0)
    assert info["focus"] == pytest.approx(TABLE.focus[query, depth], abs=0)
    assert info["alignment"] == pytest.approx(TABLE.ndcg[query, depth], abs=0)
    assert info["regret"] == pytest.approx(REGRET[query][depth], abs=1e-7)
    # means of the rows of REWARD: 1.93 / 4, 1.83 / 4, 1.4 / 4
    assert info["random"] == pytest.approx([0.4825, 0.4575, 0.35][query], abs=1e-7)


def test_types_are_plain():
    env = GRPOEnvironment(table=TABLE)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert type(reward) is float
    assert type(terminated) is type(truncated) is bool
    assert {type(info[name]) for name in info if name != "query"} == {float}
    assert type(info["query"]) is int


def test_alignment_and_weights_are_settings():
    env = GRPOEnvironment(table=TABLE, alignment="listwise", reward_weights=[0, 0.5, 2])
    env.reset(options={"query_id": APPLE})
    _, reward, _, _, info = env.step(3)
    assert reward == pytest.approx(0.5 * 0.1 + 2 * 0.4, abs=1e-6)
    assert info["alignment"] == pytest.approx(0.4, abs=1e-7)


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        ("content", [0.6, 0.8]),
        (["content"], [0.6, 0.8]),
        (("profile",), [0.0, 0.2, 0.6, 1.0, 1.0, 0.8, 0.4, 0.1]),
        (["content", "profile"], [0.6, 0.8, 0.0, 0.2, 0.6, 1.0, 1.0, 0.8, 0.4, 0.1]),
    ],
)
def test_observation_blocks(observation, expected):
    env = GRPOEnvironment(table=TABLE, observation=observation)
    shown, _ = env.reset(options={"query_id": APPLE})
    assert shown == pytest.approx(expected, abs=1e-7)
    assert shown.dtype == np.float32
    assert shown in env.observation_space
    assert env.observation_space.shape == (len(expected),)


def test_sequential_order_walks_the_split_and_starts_over():
    env = GRPOEnvironment(table=TABLE, query_order="sequential")
    seen = [IDS[env.reset()[1]["query"]] for _ in range(5)]
    assert seen == [APPLE, BERRY, CHERRY, APPLE, BERRY]


def test_sequential_order_goes_on_after_a_chosen_query_and_restarts_with_a_seed():
    env = GRPOEnvironment(table=TABLE, query_order="sequential")
    env.reset()
    assert IDS[env.reset(options={"query_id": CHERRY})[1]["query"]] == CHERRY
    assert IDS[env.reset()[1]["query"]] == BERRY
    assert IDS[env.reset(seed=3)[1]["query"]] == APPLE


def test_evaluate_policy_over_the_split_gives_the_table_mean():
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    class SecondDepth:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.ones(len(observation), dtype=np.int64), state

    env = Monitor(GRPOEnvironment(table=TABLE, query_order="sequential"))
    for _ in range(2):
        mean, _ = evaluate_policy(SecondDepth(), env, n_eval_episodes=3)
        assert mean == pytest.approx((0.5 + 0.5 + 0.3) / 3, abs=1e-6)


def test_random_order_is_uniform_and_follows_the_seed():
    env = GRPOEnvironment(table=random_table(4, 2))
    first, second, other = (
        [env.reset(seed=seed if step == 0 else None)[1]["query"] for step in range(400)]
        for seed in (7, 7, 8)
    )
    assert first == second
    assert first != other
    counts = [first.count(row) for row in range(4)]
    assert min(counts) > 70  # 100 expected; under 70 has a chance below 0.001
    assert sum(counts) == 400


def test_arrays_returned_are_the_callers():
    env = GRPOEnvironment(table=TABLE)
    shown, _ = env.reset(options={"query_id": APPLE})
    shown += 5
    final, *_ = env.step(0)
    assert final.max() == 1
    final += 5
    assert env.reset(options={"query_id": APPLE})[0].max() == 1
    assert TABLE.block("attention").max() == 1


@pytest.mark.parametrize(
    "action",
    [0, np.int64(1), np.int8(2), np.uint16(3), np.array(2), np.array(1, np.int32), torch.tensor(3)],
)
def test_integers_of_every_kind_are_actions(action):
    env = GRPOEnvironment(table=TABLE)
    env.reset(options={"query_id": APPLE})
    assert env.step(action)[1] == pytest.approx(REWARD[0][int(action)], abs=1e-7)


@pytest.mark.parametrize(
    "action",
    [
        4,
        -1,
        10**30,
        1.0,
        1.5,
        float("nan"),
        True,
        np.bool_(False),
        np.float32(1),
        np.array([1]),
        np.array(1.0),
        "1",
        None,
        [1],
        np.zeros((40, 40)),
    ],
    ids=repr,
)
def test_other_actions_are_refused_with_the_range(action):
    env = GRPOEnvironment(table=TABLE)
    env.reset(options={"query_id": APPLE})
    with pytest.raises(InputError) as caught:
        env.step(action)
    assert "integer from 0 to 3" in one_line(caught)
    assert len(one_line(caught)) < 200
    assert env.step(2)[1] == pytest.approx(0.7, abs=1e-7)  # the episode is still there


def test_step_needs_a_reset():
    env = GRPOEnvironment(table=TABLE)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize(
    ("settings", "shown", "way_out"),
    [
        ({"observation": "attenton"}, "'attenton'", "attention"),
        ({"observation": []}, "()", "attention"),
        ({"alignment": "map"}, "'map'", "ndcg, listwise"),
        ({"query_order": "shuffled"}, "'shuffled'", "random, sequential"),
        ({"split": "dev"}, "'dev'", "encoder, train, validation, test"),
        ({"split": "test"}, "'test'", "encoder 0, train 3, validation 1, test 0"),
        ({"reward_weights": (1, 2)}, "(1, 2)", "three finite numbers"),
        ({"render_mode": "human"}, "'human'", "rgb_array, ansi"),
    ],
)
def test_unknown_settings(settings, shown, way_out):
    with pytest.raises(InputError) as caught:
        GRPOEnvironment(**settings)
    assert shown in one_line(caught)
    assert way_out in one_line(caught)


def test_settings_are_checked_before_anything_is_loaded(loaded):
    for settings in ({"alignment": "map"}, {"observation": "x"}, {"reward_weights": ()}):
        with pytest.raises(InputError):
            GRPOEnvironment(**settings)
    assert loaded == []


def test_empty_table():
    with pytest.raises(InputError, match="no query"):
        GRPOEnvironment(table=random_table(0, 2))


@pytest.mark.parametrize(
    ("query_id", "hint"), [("fruit/aple", "fruit/apple"), (7, "fruit/apple"), ([], "fruit/apple")]
)
def test_unknown_query_names_a_known_one(query_id, hint):
    env = GRPOEnvironment(table=TABLE, query_order="sequential")
    with pytest.raises(InputError) as caught:
        env.reset(options={"query_id": query_id})
    assert repr(query_id) in one_line(caught)
    assert hint in one_line(caught)
    assert IDS[env.reset()[1]["query"]] == APPLE  # the refused reset left the walk alone


def test_unknown_option():
    with pytest.raises(InputError, match="'queryid'"):
        GRPOEnvironment(table=TABLE).reset(options={"queryid": APPLE})


def test_dataset_encoders_and_device_reach_the_task(loaded):
    GRPOEnvironment(dataset="some/set", encoder="untrained", device="cpu", text_encoder="minilm")
    assert loaded == [("some/set", "untrained", "cpu", {"text_encoder": "minilm"})]


def test_equal_settings_share_one_bandit():
    one = GRPOEnvironment(table=TABLE)
    assert GRPOEnvironment(table=TABLE, query_order="sequential").bandit is one.bandit
    assert GRPOEnvironment(table=TABLE, alignment="listwise").bandit is not one.bandit
    assert not one.bandit.observations.flags.writeable
    assert TABLE.block("attention").flags.writeable


def test_gymnasium_checker_without_a_warning():
    env = gym.make("MAWDepth-v0").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env_checker.check_env(env)
        env_checker.check_env(gym.make("MAWDepth-v0", query_order="sequential").unwrapped)


def test_stable_baselines_checker_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_env_checker.check_env(gym.make("MAWDepth-v0", observation=("attention", "profile")))
        sb3_env_checker.check_env(
            gym.make("MAWDepth-v0", render_mode="rgb_array"), skip_render_check=False
        )


def test_made_environment_passes_the_passive_checker_and_has_no_time_limit():
    env = gym.make("MAWDepth-v0", disable_env_checker=False)
    assert env.spec.max_episode_steps is None
    assert env.metadata["render_fps"] == 1
    for seed in range(3):
        env.reset(seed=seed)
        *_, truncated, _ = env.step(env.action_space.sample())
        assert truncated is False


def test_registering_again_is_harmless():
    before = gym.spec("MAWDepth-v0")
    register_environments()
    assert gym.spec("MAWDepth-v0") is before


def test_spec_survives_json():
    env = gym.make(
        "MAWDepth-v0", observation=("content", "profile"), reward_weights=(0.1, 0.2, 0.7)
    )
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space
    assert again.unwrapped.bandit is env.unwrapped.bandit  # lists for tuples, the same settings


def test_docstring_shows_the_defaults():
    text = GRPOEnvironment.__doc__
    for heading in ("Action Space", "Observation Space", "Rewards", "Starting State", "Arguments"):
        assert f"## {heading}" in text
    for default in ('"pydocs"', '"untrained"', '"train"', '"attention"', '"ndcg"', '"random"'):
        assert default in text


def test_docstring_has_a_row_of_every_block():
    for name, block in BLOCKS.items():
        low, high = np.min(block.low), np.max(block.high)
        row = f"| `{name}` | {block.numbers} | {low:g} | {high:g} | {block.about} |"
        assert row in GRPOEnvironment.__doc__


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_go_on_where_the_original_was(duplicate):
    env = GRPOEnvironment(table=random_table(20, 3))
    env.reset(seed=1)
    twin = duplicate(env)
    assert not twin.bandit.observations.flags.writeable
    for depth in (0, 2, 1):
        results = [each.step(depth) for each in (env, twin)]
        assert results[0][1] == results[1][1]
        assert results[0][4] == results[1][4]
        assert env.reset()[1] == twin.reset()[1]


def test_render_draws_before_and_after_the_choice():
    env = GRPOEnvironment(render_mode="ansi")
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(options={"query_id": APPLE})
    assert "No depth chosen yet" in env.render()
    env.step(1)
    lines = env.render().splitlines()
    assert lines[0] == "Query fruit/apple"
    assert lines[1] == "Depth 1 of 4 (0 is the most focused)"
    assert lines[2] == "  red  ->  red 1.00  app 0.00  ·le 0.00"
    assert lines[-2] == "reward     0.500  ██████████"
    frame = GRPOEnvironment(render_mode="rgb_array")
    frame.reset(seed=0)
    assert frame.render().shape == (600, 1100, 3)


def test_render_without_a_mode_warns():
    env = GRPOEnvironment(table=TABLE)
    env.reset()
    with pytest.warns(UserWarning, match="render mode"):
        assert env.render() is None


def test_a_table_alone_has_no_texts_to_draw():
    env = GRPOEnvironment(table=TABLE, render_mode="ansi")
    env.reset()
    assert "Observed attention" in env.render()
    env.step(0)
    with pytest.raises(InputError, match="no texts"):
        env.render()


@pytest.mark.parametrize("blocks", ["attention", ("profile", "attention"), "profile"])
def test_says_how_many_observed_numbers_each_depth_has(blocks):
    expected = 2 if blocks == "profile" else 0
    assert GRPOEnvironment(table=TABLE, observation=blocks).numbers_per_action == expected
    envs = GRPOVectorEnvironment(2, table=TABLE, observation=blocks)
    assert envs.numbers_per_action == expected


@pytest.mark.parametrize("pickler", [pickle, cloudpickle, dill])
def test_goes_on_alike_where_it_was_pickled(pickler):
    env = GRPOEnvironment(table=TABLE)
    env.reset(seed=3)
    again = pickler.loads(pickler.dumps(env))
    for each in (env, again):
        each.step(1)
    assert [env.reset()[1] for _ in range(9)] == [again.reset()[1] for _ in range(9)]
    envs = GRPOVectorEnvironment(4, 2, table=TABLE)
    envs.reset(seed=3)
    copied = pickler.loads(pickler.dumps(envs))
    actions = np.array([0, 1, 2, 3])
    assert np.array_equal(envs.step(actions)[1], copied.step(actions)[1])
