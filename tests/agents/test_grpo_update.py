"""Updates and formulas of GRPO against numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch as th
from bandits import grouped_bandit
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from maw_gym.agents.grpo import GRPO, losses
from maw_gym.agents.sb3.vec_env import to_sb3

LN2 = 0.6931472
KL = 0.1438410  # of (1/2, 1/2) to (1/4, 3/4): 1/2 ln(4/3)


# One gradient step on the critic's advantages, unclipped
PLAIN = {"advantage": "critic", "n_epochs": 1, "batch_size": None, "clip_range": None}


def two_armed(**settings: Any) -> GRPO:
    """Policy (1/2, 1/2), reference (1/4, 3/4), value 1/4, whatever the observation."""
    env = grouped_bandit(4, 4)
    env.single_action_space = spaces.Discrete(2)
    settings = PLAIN | settings
    model = GRPO("MlpPolicy", to_sb3(env), n_steps=1, device="cpu", learning_rate=1e-9, **settings)
    model.set_logger(configure(None, []))
    for policy, probabilities in ((model.policy, (0.5, 0.5)), (model.reference_policy, (1.0, 3.0))):
        with th.no_grad():
            policy.action_net.weight.zero_()
            policy.action_net.bias.copy_(th.tensor(probabilities).log())
            policy.value_net.weight.zero_()
            policy.value_net.bias.fill_(0.25)
    return model


def update(
    model: GRPO, actions: list[int], rewards: list[float], probabilities: list[float]
) -> dict[str, float]:
    """Train on one rollout of four environments and return what was logged."""
    buffer = model.rollout_buffer
    buffer.reset()
    buffer.add(
        np.tile([1.0, 0.0, 0.0, 0.0], (4, 1)),
        np.array(actions),
        np.array(rewards),
        np.ones(4),
        th.full((4,), 0.25),
        th.tensor(probabilities).log(),
    )
    buffer.compute_returns_and_advantage(th.zeros(4), np.ones(4, bool))
    model.train()
    return dict(model.logger.name_to_value)


def test_the_seeds_loss() -> None:
    logged = update(two_armed(ratio="reference"), [0, 1, 0, 1], [1, 0, 0, 1], [0.5] * 4)
    # advantages r - 1/4: 3/4, -1/4, -1/4, 3/4. Ratios to the reference: 2, 2/3, 2, 2/3.
    # gains 3/2 - 1/6 - 1/2 + 1/2 = 4/3, over 4
    assert logged["train/policy_loss"] == pytest.approx(-1 / 3, abs=1e-6)
    # (9/16 + 1/16 + 1/16 + 9/16) / 4
    assert logged["train/value_loss"] == pytest.approx(0.3125, abs=1e-6)
    assert logged["train/kl_reference"] == pytest.approx(KL, abs=1e-6)
    assert logged["train/entropy_loss"] == pytest.approx(-LN2, abs=1e-6)
    assert logged["policy/entropy"] == pytest.approx(LN2, abs=1e-6)
    # -1/3 + .1 * .1438410 + .5 * .3125 - .01 * .6931472
    assert logged["train/loss"] == pytest.approx(-0.1696307, abs=1e-6)
    assert (logged["train/n_updates"], logged["train/learning_rate"]) == (1, 1e-9)
    assert not logged.keys() & {"train/clip_fraction", "train/zero_std_groups"}


def test_the_gradients_norm() -> None:
    settings = {"kl_coef": 0.0, "ent_coef": 0.0, "vf_coef": 0.0, "ratio": "old"}
    # d loss / d logits = -mean(A (onehot - pi)) = -(1/2)(1/2, -1/2) on the bias of the logits;
    # their weight gets this times the hidden features h: norm sqrt(1/8) * sqrt(1 + |h|^2).
    # Nothing flows further down through a weight of zero.
    model = two_armed(seed=1, **settings)
    hidden = model.policy.mlp_extractor.forward_actor(
        model.policy.features_extractor(th.tensor([[1.0, 0.0, 0.0, 0.0]]))
    )
    logged = update(model, [0, 0, 0, 0], [1.25, 1.25, 0.25, 0.25], [0.5] * 4)
    expected = (0.125 * (1 + hidden.square().sum().item())) ** 0.5
    assert logged["train/grad_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "policy_loss"),
    [
        # rewards (1,0,0,0): mean 1/4, std sqrt(3)/4; advantages sqrt(3), -1/sqrt(3) three times.
        # Ratios to the old policy 2, 1, 1, 1: (2 sqrt(3) - sqrt(3)) / 4
        ({"advantage": "outcome"}, -0.4330127),
        ({"advantage": "process"}, -0.4330127),  # a single step is its own outcome
        ({"advantage": "state"}, -0.4330127),
        # the first gain is cut to 1.2 sqrt(3): .2 sqrt(3) / 4
        ({"advantage": "outcome", "clip_range": 0.2}, -0.0866025),
        # asymmetric: 1.5 sqrt(3): .5 sqrt(3) / 4
        ({"advantage": "outcome", "clip_range": 0.2, "clip_range_high": 0.5}, -0.2165064),
        # advantages 3/4, -1/4 three times: (3/2 - 3/4) / 4
        ({"advantage": "group_mean"}, -0.1875),
        # r - 1/4: the same numbers here
        ({"advantage": "critic"}, -0.1875),
    ],
)
def test_advantages_with_the_old_policys_ratio(
    settings: dict[str, Any], policy_loss: float
) -> None:
    model = two_armed(ratio="old", group_size=4, **settings)
    logged = update(model, [0, 1, 1, 1], [1, 0, 0, 0], [0.25, 0.5, 0.5, 0.5])
    assert logged["train/policy_loss"] == pytest.approx(policy_loss, abs=1e-6)
    if "clip_range" in settings:
        assert logged["train/clip_fraction"] == 0.25
    if settings["advantage"] != "critic":
        assert logged["train/zero_std_groups"] == 0.0
        assert "train/value_loss" not in logged
        # policy loss + .1 KL - .01 entropy, no value loss
        expected = policy_loss + 0.0143841 - 0.0069315
        assert logged["train/loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "penalty"),
    [
        ("exact", KL),
        # actions 0, 1, 1, 1: (k(0) + 3 k(1)) / 4, and r = p / pi is 1/2 of 0 and 3/2 of 1
        ("k1", -0.1308120),  # -ln r: .6931472, -.4054651
        ("k2", 0.1217074),  # (ln r)^2 / 2: .2402265, .0822010
        ("k3", 0.1191880),  # r - 1 - ln r: .1931472, .0945349
    ],
)
def test_kl_penalties(kl: str, penalty: float) -> None:
    model = two_armed(kl=kl, ent_coef=0.0, vf_coef=0.0, ratio="old", kl_coef=2.0)
    logged = update(model, [0, 1, 1, 1], [0.25] * 4, [0.5] * 4)  # advantages 0
    assert logged["train/loss"] == pytest.approx(2.0 * penalty, abs=1e-6)
    assert logged["train/kl_reference"] == pytest.approx(KL, abs=1e-6)  # exact for every kind


def test_batches_have_whole_groups_in_another_order_each_time() -> None:
    # No neighbouring groups are alike.
    env = to_sb3(grouped_bandit(32, 8, query_order="sequential"))
    model = GRPO("MlpPolicy", env, n_steps=2, seed=0, device="cpu").learn(64)
    rollout = model.rollout_buffer.rollout
    passes = [list(rollout.batches(24)) for _ in range(2)]
    for batches in passes:
        sizes = [(len(batch.actions), len(batch.observations)) for batch in batches]
        assert sizes == [(24, 3), (24, 3), (16, 2)]
        actions = th.cat([batch.actions for batch in batches])
        assert th.equal(actions.bincount(), rollout.actions.bincount())
        for batch in batches:
            contexts = batch.spread(batch.observations).argmax(-1)
            # above its group's mean are only those that took the best action
            assert ((batch.advantages > 0) <= (batch.actions == contexts)).all()
    assert not th.equal(passes[0][0].observations, passes[1][0].observations)


class Reader(BaseCallback):
    """Looks into the buffer by SB3's own means, which rearranges it in place."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        next(self.model.rollout_buffer.get())


def test_an_update_is_the_same_beside_a_reader() -> None:
    results = []
    for callback in (None, Reader()):
        env = to_sb3(grouped_bandit(16, 8))
        settings = PLAIN | {"advantage": "outcome", "clip_range": 0.2}
        model = GRPO("MlpPolicy", env, n_steps=4, seed=0, device="cpu", **settings)
        rollout = model.learn(64, callback).rollout_buffer.rollout
        # 8 groups, of which neighbours in time may share their context too
        assert len(rollout.observations) <= 8
        results.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert th.equal(*results)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(None, 0.8125), (0.5, 0.3125), (1.0, 0.8125), (lambda left: left / 2, 0.3125)],
)
def test_values_count_as_near_the_rollouts_own(clip: Any, expected: float) -> None:
    model = two_armed(clip_range_vf=clip)
    with th.no_grad():
        model.policy.value_net.bias.fill_(1.25)  # 1/4 in the rollout
    logged = update(model, [0, 1, 0, 1], [1, 0, 0, 1], [0.5] * 4)
    assert logged["train/value_loss"] == pytest.approx(expected)
    assert logged.get("train/clip_range_vf") == (0.5 if callable(clip) else clip)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="environment 2 at step 0 of the rollout is"):
        update(two_armed(), [0, 1, 0, 1], [1, 0, bad, 1], [0.5] * 4)


@pytest.mark.parametrize(
    ("reward", "gradient", "message"),
    [
        # (1e30 - 1/4)^2 is beyond float32
        (1e30, 1.0, "train/value_loss is inf at step 7"),
        (1.0, np.nan, "train/grad_norm is nan at step 7"),
    ],
)
def test_what_is_not_finite_leaves_the_parameters_alone(
    reward: float, gradient: float, message: str
) -> None:
    model = two_armed()
    model.num_timesteps = 7
    model.policy.action_net.bias.register_hook(lambda grad: grad * gradient)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(FloatingPointError, match=message):
        update(model, [0, 1, 0, 1], [reward, 0, 0, 1], [0.5] * 4)
    for old, new in zip(before, model.policy.parameters(), strict=True):
        assert th.equal(old, new)


def test_dropout_is_off_in_the_loss() -> None:
    env, kind = to_sb3(grouped_bandit(8, 8)), {"activation_fn": th.nn.Dropout}
    model = GRPO("MlpPolicy", env, n_steps=2, device="cpu", policy_kwargs=kind, **PLAIN)
    model.learn(16)
    # the first update starts from the reference, in one batch: the KL is exactly zero
    assert model.logger.name_to_value["train/kl_reference"] == 0.0
    # with dropout the same weights would give different probabilities
    model.policy.set_training_mode(True)
    first, second = (model.policy.get_distribution(th.eye(4)[:1]).distribution for _ in range(2))
    assert not th.equal(first.probs, second.probs)


# --- Formulas alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [3, 7, 8])
def test_equal_rewards_give_zero_in_spite_of_rounding(group_size: int) -> None:
    # In float32 the mean of some of these is not the number itself, and the difference of some
    # 1e-8 over (1e-8 + 1e-8) is an advantage of order 1.
    values = np.linspace(0.05, 0.95, 91, dtype=np.float32)
    rewards = np.repeat(values[:, None], group_size, axis=1)
    result = losses.group_advantages(rewards, group_size, divide=True)
    assert (np.abs(result.advantages).max(), result.zero_std) == (0.0, 1.0)
    rewards[0, 0] = 2  # and one group of 91 is not all equal
    assert losses.group_advantages(rewards, group_size, divide=True).zero_std == 90 / 91


def test_process_advantages() -> None:
    # Alive longer, by 1 a step: 0 where both live, then 1/2 and -1/2; root mean square over
    # (.25, .5), (-.25, -.5): sqrt(.15625)
    lived = np.array([[1.0, 1.0], [1.0, 0.0]])
    expected = np.array([[0.25, 0.5], [-0.25, -0.5]]) / 0.15625**0.5
    # Beside a group that lives longer
    both = np.hstack([np.vstack([lived, np.zeros((2, 2))]), np.ones((4, 2)) * [1, 2]])
    found = losses.process_advantages(both, np.array([2, 1, 4, 4]), 2, 0.5)
    np.testing.assert_allclose(found[:2, :2].T, expected)


def test_discounted_sums_end_with_their_episodes() -> None:
    starts = np.array([[1, 1], [0, 1], [0, 0]], bool)
    sums = losses.discounted_sums(np.array([[1.0, 1], [2, 2], [4, 4]]), starts, 0.5)
    assert sums.T.tolist() == [[3, 4, 4], [1, 4, 4]]


@pytest.mark.parametrize(
    ("neighbours", "candidates", "expected"),
    [
        # The nearest step of another episode; of 1 and 3 both 0s, which are as near
        (1, 9, [4, 1.5, 4, 1.5, 8]),
        (2, 9, [6, 1.5, 6, 1.5, 6]),
        # of 9 those at 3 and 1, and half of each 0
        (3, 9, [44 / 3, 35 / 3, 44 / 3, 35 / 3, (8 + 4 + 1.5) / 3]),
        (9, 9, [44 / 3, 35 / 3, 44 / 3, 35 / 3, 15 / 4]),
        # of the first step of each episode alone
        (9, 3, [18, 16.5, 18, 16.5, 2.5]),
    ],
)
def test_values_of_similar_states(neighbours: int, candidates: int, expected: list[float]) -> None:
    states = th.tensor([[0.0], [1.0], [0.0], [3.0], [9.0]])
    # one number that never changes, and the same on another scale
    states = th.cat([states, th.ones(5, 1), 100 * states], dim=1)
    sums, episodes = th.tensor([1.0, 4, 2, 8, 32]), th.tensor([0, 1, 0, 1, 2])
    values = losses.similar_state_values(states, sums, episodes, neighbours, candidates)
    assert values.tolist() == pytest.approx(expected)
    alone = losses.similar_state_values(states[::2][:2], sums[:2], episodes[::2][:2], neighbours)
    assert alone.tolist() == [0, 0]


@pytest.mark.parametrize(("candidates", "error"), [(1200, 1e-3), (500, 5)])
def test_values_of_similar_states_of_long_episodes(candidates: int, error: float) -> None:
    """Three that go the same way, a step of each in turn, with 0, 5 and 10 more to come."""
    way, episodes = th.arange(400).repeat_interleave(3), th.arange(1200) % 3
    states = way[:, None].float()
    if candidates == 1200:  # distances of equal states are not quite 0
        states = th.randn(400, 40, generator=th.Generator().manual_seed(0))[way]
    values = losses.similar_state_values(states, way + 5.0 * episodes, episodes, 1, candidates)
    # Both others are as near. Of candidates that are every third step one of them may be nearer.
    assert (values - way - (15 - 5 * episodes) / 2).abs().max() <= error


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # gains .5*1, 1*-1, 1.5*2, 2*-1, .5*-1: sum 0
        (None, None, 0.0),
        # .5, -1, min(3, 1.2*2), min(-2, 1.2*-1), min(-.5, .8*-1): .5 - 1 + 2.4 - 2 - .8 = -.9
        (0.2, None, 0.18),
        # DAPO: only the upper bound moves: min(3, 1.4*2): .5 - 1 + 2.8 - 2 - .8 = -.5
        (0.2, 0.4, 0.1),
    ],
)
def test_policy_loss(low: float | None, high: float | None, expected: float) -> None:
    ratio = th.tensor([0.5, 1.0, 1.5, 2.0, 0.5])
    advantages = th.tensor([1.0, -1.0, 2.0, -1.0, -1.0])
    assert losses.policy_loss(ratio, advantages, low, high).item() == pytest.approx(expected)


def test_clip_fraction() -> None:
    ratio = th.tensor([0.5, 1.0, 1.25, 1.5])
    assert losses.clip_fraction(ratio, 0.2).item() == 0.75  # all but 1.0
    assert losses.clip_fraction(ratio, 0.2, 0.3).item() == 0.5  # 1.25 is inside now


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_gradient_of_a_sampled_kl(kind: str) -> None:
    logits = th.tensor([0.3, -1.0, 0.8], requires_grad=True)
    reference = th.tensor([1.0, 0.2, -0.5]).log_softmax(-1)
    log_pi = logits.log_softmax(-1)
    # the mean over actions drawn from pi, exactly: pi outside the gradient
    mean = (log_pi.exp().detach() * losses.sampled_kl(log_pi, reference, kind)).sum()
    (gradient,) = th.autograd.grad(mean, logits, retain_graph=True)
    if kind == "k1":
        wanted = th.zeros(3)
    else:
        pair = (log_pi, reference) if kind == "k2" else (reference, log_pi)
        (wanted,) = th.autograd.grad(losses.exact_kl(*pair), logits)
    th.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)
