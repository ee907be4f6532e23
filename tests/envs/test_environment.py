import copy
import pickle
import re
import warnings
from functools import partial
from pathlib import Path

import cloudpickle
import dill
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import env_checker
from hand_made import APPLE, BERRY, CHERRY, REGRET, REWARD, TABLE, random_table
from stable_baselines3.common import env_checker as sb3_env_checker

from maw_gym.agents.grpo.settings import GRPOSettings
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.queries import load_bandit
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.runners.experiments.settings import Spec
from maw_gym.tables.depth_table import BLOCKS


def env(**settings):
    return GRPOEnvironment(table=TABLE, **settings)


def showing(query_id, **settings):
    made = env(**settings)
    made.reset(options={"query_id": query_id})
    return made


@pytest.mark.parametrize("query", range(3))
@pytest.mark.parametrize("depth", range(4))
def test_every_reward_and_term_by_hand(query, depth):
    made = env()
    shown, info = made.reset(options={"query_id": TABLE.query_ids[query]})
    assert info == {"query": query}
    assert shown.tolist() == np.eye(3, 64)[query].tolist()
    observation, reward, terminated, truncated, info = made.step(depth)
    assert observation.tolist() == shown.tolist()
    assert reward == pytest.approx(REWARD[query][depth], abs=1e-7)
    assert (terminated, truncated) == (True, False)
    assert info["entropy"] == TABLE.entropy[query, depth]
    assert info["focus"] == TABLE.focus[query, depth]
    assert info["alignment"] == TABLE.ndcg[query, depth]
    assert info["regret"] == pytest.approx(REGRET[query][depth], abs=1e-7)
    # means of the rows of REWARD: 1.93 / 4, 1.83 / 4, 1.4 / 4
    assert info["random"] == pytest.approx([0.4825, 0.4575, 0.35][query], abs=1e-7)
    assert list(info) == ["query", "entropy", "focus", "alignment", "regret", "random"]
    assert [type(value) for value in info.values()] == [int] + 5 * [float]
    assert [type(one) for one in (reward, terminated, truncated)] == [float, bool, bool]


def test_alignment_weights_and_blocks_are_settings():
    made = env(alignment="listwise", reward_weights=[0, 0.5, 2], observation=["content", "profile"])
    shown, _ = made.reset(options={"query_id": APPLE})
    assert shown == pytest.approx([0.6, 0.8, 0, 0.2, 0.6, 1, 1, 0.8, 0.4, 0.1], abs=1e-7)
    assert shown in made.observation_space
    _, reward, _, _, info = made.step(3)
    assert reward == pytest.approx(0.5 * 0.1 + 2 * 0.4, abs=1e-6)
    assert info["alignment"] == pytest.approx(0.4, abs=1e-7)
    for blocks, expected in (("attention", 0), (("profile", "attention"), 0), ("profile", 2)):
        envs = gym.make_vec("MAWDepth-v0", 2, table=TABLE, observation=blocks)
        assert env(observation=blocks).numbers_per_action == envs.numbers_per_action == expected


def test_sequential_order_walks_the_split_whatever_is_chosen_and_restarts_with_a_seed():
    made = env(query_order="sequential")
    assert [made.reset()[1]["query"] for _ in range(4)] == [0, 1, 2, 0]
    assert made.reset(options={"query_id": CHERRY})[1]["query"] == 2
    assert made.reset()[1]["query"] == 1
    assert made.reset(seed=3)[1]["query"] == 0


def test_arrays_returned_are_the_callers():
    made = env()
    shown, _ = made.reset(options={"query_id": APPLE})
    shown += 5
    final, *_ = made.step(0)
    assert final.max() == 1
    final += 5
    assert made.reset(options={"query_id": APPLE})[0].max() == 1
    assert TABLE.block("attention").max() == 1


@pytest.mark.parametrize(
    "action",
    [np.int64(1), np.uint16(3), np.array(2), torch.tensor(3)],
)
def test_integers_of_every_kind_are_actions(action):
    assert showing(APPLE).step(action)[1] == pytest.approx(REWARD[0][int(action)], abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation": "attenton"}, "'attenton'; choose one of attention"),
        ({"observation": []}, r"attention, .*; got \(\)"),
        ({"split": "dev"}, "'dev'; choose one of encoder, train, validation, test"),
        ({"alignment": "map"}, "'map'; choose one of ndcg, listwise"),
        ({"query_order": "shuffled"}, "'shuffled'; choose one of random, sequential"),
        ({"reward_weights": (1, 2)}, r"three finite numbers .* got \(1, 2\)"),
        ({"render_mode": "human"}, "'human'; choose one of rgb_array, ansi"),
    ],
)
def test_unknown_settings_are_refused_before_anything_is_loaded(settings, message):
    with pytest.raises(InputError, match=message):
        GRPOEnvironment(dataset="that does not exist", **settings)


def test_there_must_be_queries(tiny_folder):
    with pytest.raises(InputError, match="the depth table has no query"):
        GRPOEnvironment(table=random_table(0, 2))
    with pytest.raises(InputError, match=r"split 'encoder' of .* there are: encoder 0, train 12,"):
        GRPOEnvironment(dataset=str(tiny_folder), device="cpu", split="encoder")


@pytest.mark.parametrize("query_id", ["fruit/aple", 7, []])
def test_unknown_query_names_a_known_one(query_id):
    made = env(query_order="sequential")
    with pytest.raises(InputError, match=r"no query .* try 'fruit/apple'") as caught:
        made.reset(options={"query_id": query_id})
    assert repr(query_id) in str(caught.value)
    assert made.reset()[1]["query"] == 0  # the refused reset left the walk alone
    with pytest.raises(InputError, match="unknown reset option 'queryid'; there is query_id"):
        made.reset(options={"queryid": APPLE})


def test_equal_settings_share_one_bandit():
    one = env()
    assert env(query_order="sequential").bandit is one.bandit
    assert env(alignment="listwise").bandit is not one.bandit


@pytest.fixture
def settings(tiny_folder):
    return {"dataset": str(tiny_folder), "device": "cpu"}


def test_checkers_of_gymnasium_and_stable_baselines_without_a_warning(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make("MAWDepth-v0", **settings)
        assert (made.spec.max_episode_steps, made.metadata["render_fps"]) == (None, 1)
        env_checker.check_env(made.unwrapped)
        sequential = gym.make("MAWDepth-v0", query_order="sequential", **settings)
        env_checker.check_env(sequential.unwrapped)
        blocks = ("attention", "profile")
        sb3_env_checker.check_env(gym.make("MAWDepth-v0", observation=blocks, **settings))
        drawn = gym.make("MAWDepth-v0", render_mode="rgb_array", **settings)
        sb3_env_checker.check_env(drawn, skip_render_check=False)


def test_spec_survives_json(settings):
    asked = {"observation": ("content", "profile"), "reward_weights": (0.1, 0.2, 0.7)}
    made = gym.make("MAWDepth-v0", **asked, **settings)
    again = gym.make(EnvSpec.from_json(made.spec.to_json()))
    assert again.observation_space == made.observation_space
    assert again.unwrapped.bandit is made.unwrapped.bandit  # lists for tuples, the same settings


def test_docstring_tells_the_defaults_and_every_block():
    text = GRPOEnvironment.__doc__
    for heading in ("Action Space", "Observation Space", "Rewards", "Starting State", "Arguments"):
        assert f"## {heading}" in text
    for default in ('"pydocs"', '"untrained"', '"train"', '"attention"', '"ndcg"', '"random"'):
        assert default in text
    for name, block in BLOCKS.items():
        low, high = np.min(block.low), np.max(block.high)
        assert f"| `{name}` | {block.numbers} | {low:g} | {high:g} | {block.about} |" in text


def test_defaults_are_those_of_the_command_but_for_a_table_in_the_docs():
    """Rows: setting, default of gym.make or make_vec, default of the command."""
    page = (Path(__file__).parents[2] / "docs" / "environment.md").read_text()
    rows = re.findall(r'^\| `(\w+)` \| `?"?(\w+)"?`?.* \| `--[\w-]+ (\w+)` \|$', page, re.MULTILINE)
    ours = {**load_bandit.__kwdefaults__, "num_envs": 1, "group_size": 1}
    spec = Spec(learner=GRPOSettings())
    command = {**vars(spec.task), **vars(spec.online), "group_size": spec.learner.group_size}
    command["observation"] = " ".join(spec.task.observation)
    shared = {name for name in ours if name in command and ours[name] != command[name]}
    assert {name: (left, right) for name, left, right in rows} == {
        name: (str(ours[name]), str(command[name])) for name in shared
    }


@pytest.mark.parametrize(
    ("kind", "action"), [(GRPOEnvironment, 1), (partial(GRPOVectorEnvironment, 4, 2), [1, 2, 0, 1])]
)
def test_copies_go_on_where_the_original_was(kind, action):
    made = kind(table=random_table(20, 3))
    made.reset(seed=1)
    copies = [
        copy.deepcopy(made),
        *(it.loads(it.dumps(made)) for it in (pickle, cloudpickle, dill)),
    ]
    assert not copies[0].bandit.observations.flags.writeable
    for _ in range(3):
        expected = made.step(action), made.reset()
        for twin in copies:
            np.testing.assert_equal((twin.step(action), twin.reset()), expected)


def test_render_draws_before_and_after_the_choice(settings):
    made = GRPOEnvironment(render_mode="ansi", **settings)
    with pytest.raises(ResetNeeded):
        made.render()
    made.reset(options={"query_id": "q0"})
    assert "No depth chosen yet" in made.render()
    reward = made.step(1)[1]
    lines = made.render().splitlines()
    assert lines[:2] == ["Query q0", "Depth 1 of 32 (0 is the most focused)"]
    assert [line.split()[0] for line in lines[2:7]] == ["how", "be", "·es", "make", "h"]
    assert lines[-2].startswith(f"reward     {reward:.3f}  █")
    frame = GRPOEnvironment(render_mode="rgb_array", **settings)
    frame.reset(seed=0)
    before = frame.render()
    frame.step(1)
    assert before.shape == frame.render().shape == (600, 1100, 3)
    assert (before != frame.render()).any()


def test_render_without_a_mode_or_without_texts():
    made = env()
    made.reset()
    with pytest.warns(UserWarning, match="render mode"):
        assert made.render() is None
    made = showing(BERRY, render_mode="ansi")
    assert "Observed attention" in made.render()
    made.step(0)
    with pytest.raises(InputError, match="no texts"):
        made.render()
