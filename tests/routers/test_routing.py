import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maw_gym import files
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter, depth_features, load_router, save_router

TELLS = {"learner": "by hand", "seed": 3}


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float32)


def by_hand(activation="relu", limit=float("inf")):
    """Two numbers in, two hidden, three depths."""
    layers = [
        (tensor([[1, 0], [0, -1]]), tensor([0, 1])),
        (tensor([[1, 0], [0, 1], [1, 1]]), tensor([0, 0.5, -4])),
    ]
    mean, scale = tensor([1, 2]), tensor([2, 0.5])
    return DepthRouter(layers, activation, mean, scale, ("content",), TELLS, limit)


def test_logits_by_hand():
    # (3, 4): standardised (4, 1), hidden relu(4, 0) = (4, 0), logits (4, 0.5, 0).
    # (0, 0): standardised (-2, -1), hidden relu(-2, 2) = (0, 2), logits (0, 2.5, -2).
    logits = by_hand()(tensor([[3, 4], [0, 0]]))
    assert logits.tolist() == [[4.0, 0.5, 0.0], [0.0, 2.5, -2.0]]


def test_tanh_by_hand():
    t4, t0 = np.tanh(4.0), np.tanh(0.0)
    logits = by_hand("tanh")(tensor([[3, 4]])).detach()
    np.testing.assert_allclose(logits, [[t4, t0 + 0.5, t4 + t0 - 4]], rtol=1e-6)


def test_standardised_numbers_are_clipped_to_the_limit():
    # Standardised (4, 1) becomes (3, 1).
    assert by_hand(limit=3.0)(tensor([[3, 4]])).tolist() == [[3.0, 0.5, -1.0]]


def shared_by_hand():
    """Two numbers of each of two depths in; hidden: excess over the mean, and minus the second."""
    layers = [
        (tensor([[0, 0, 1, 0, 0, 0], [0, -1, 0, 0, 0, 0]]), tensor([0, 5])),
        (tensor([[10, 1]]), tensor([0, 0.5])),
    ]
    mean, scale = tensor([1, 1, 0, 0]), tensor([1, 1, 0.5, 0.5])
    return DepthRouter(layers, "relu", mean, scale, ("profile",), TELLS, shared=True)


def test_features_of_depths_by_hand():
    # First numbers 1 and 3: mean 2, largest 3. Second numbers 7 and 5: mean 6, largest 7.
    features = depth_features(tensor([[1, 3, 7, 5]]), 2)
    assert features.tolist() == [[[1, 7, -1, 1, -2, 0], [3, 5, 1, -1, 0, -2]]]


def test_shared_logits_by_hand():
    # Standardised: depth 0 has (1, 2), depth 1 (3, 3). Excess over the mean 2: -1 and 1.
    # Hidden relu: (0, 3) and (1, 2); logits 0 + 3 + 0 and 10 + 2 + 0.5.
    assert shared_by_hand()(tensor([[2, 4, 4, 6]])).tolist() == [[3.0, 12.5]]
    assert shared_by_hand().predict(np.array([2, 4, 4, 6], np.float32))[0] == 1


def test_predict_has_the_signature_of_sb3():
    router = by_hand()
    depths, state = router.predict(np.array([[3, 4], [0, 0]], np.float32))
    assert depths.tolist() == [0, 1]
    assert depths.dtype == np.int64
    assert state is None
    one, _ = router.predict(
        np.array([0, 0], np.float32), state=None, episode_start=None, deterministic=True
    )
    assert one.shape == ()
    assert one == 1


def test_predict_samples_from_the_softmax():
    torch.manual_seed(0)
    given = np.repeat(np.array([[3, 4]], np.float32), 4000, axis=0)
    depths, _ = by_hand().predict(given, deterministic=False)
    # softmax(4, 0.5, 0) = 1 / (1 + e^-3.5 + e^-4) (1, e^-3.5, e^-4)
    shares = np.bincount(depths, minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.9537, 0.0288, 0.0175], atol=0.012)


def test_a_file_gives_the_shared_router_back(tmp_path):
    router = shared_by_hand()
    save_router(tmp_path / "router.safetensors", router)
    again = load_router(tmp_path / "router.safetensors")
    given = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.equal(again(given), router(given))
    assert (again.shared, again.depths) == (True, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": False}, r"layers\.0\.weight"),
        ({"widths": [4, 2, 3]}, r"layers\.0\.weight"),
        ({"widths": [4, 2, 0]}, "incomplete router settings"),
    ],
)
def test_a_shared_file_that_contradicts_itself(tmp_path, change, message):
    path = tmp_path / "router.safetensors"
    save_router(path, shared_by_hand())
    rewritten(path, lambda settings: settings.update(change))
    with pytest.raises(InputError, match=message):
        load_router(path)


@pytest.mark.parametrize("limit", [float("inf"), 2.5])
def test_a_file_gives_the_router_back(tmp_path, limit):
    router = by_hand(limit=limit)
    save_router(tmp_path / "router.safetensors", router)
    again = load_router(tmp_path / "router.safetensors")
    given = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.equal(again(given), router(given))
    assert again.observation == ("content",)
    assert again.settings == TELLS
    assert again.limit == limit
    assert not again.training


def test_unknown_activation_and_layers_that_do_not_fit():
    with pytest.raises(InputError, match="unknown activation 'elu'; choose from relu, tanh"):
        by_hand("elu")
    layers = [(torch.zeros(3, 4), torch.zeros(3))]
    with pytest.raises(InputError, match=r"weight \(3, 4\) and bias \(3,\) after 2 numbers"):
        DepthRouter(layers, "relu", torch.zeros(2), torch.ones(2), ("content",), {})
    layers = [(torch.zeros(3, 2), torch.zeros(2))]
    with pytest.raises(InputError, match="do not fit"):
        DepthRouter(layers, "relu", torch.zeros(2), torch.ones(2), ("content",), {})
    four = (torch.zeros(4), torch.ones(4), ("profile",), {})
    layers = [(torch.zeros(1, 5), torch.zeros(2))]
    with pytest.raises(InputError, match=r"weight \(1, 5\) and bias \(2,\) after 6 numbers"):
        DepthRouter(layers, "relu", *four, shared=True)
    layers = [(torch.zeros(1, 4), torch.zeros(3))]
    with pytest.raises(InputError, match="equally many numbers of each depth, got 4 for 3"):
        DepthRouter(layers, "relu", *four, shared=True)
    with pytest.raises(InputError, match="got 4 for 0"):
        DepthRouter([], "relu", *four, shared=True)
    with pytest.raises(InputError, match="unknown observation block 'mood'"):
        DepthRouter([], "relu", torch.zeros(2), torch.ones(2), ("mood",), {})


def rewritten(path, change_settings=None, change_tensors=None):
    """Write a router's file anew with other settings or tensors."""
    settings, tensors = files.read(path, "router")
    if change_settings:
        change_settings(settings)
    if change_tensors:
        change_tensors(tensors)
    files.write(path, tensors, "router", settings)


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        (lambda s: s.pop("widths"), None, "settings"),
        (
            lambda s: s.update(widths=[2] * 5_000_000),
            None,
            r"settings \(widths \[2, 2, .* for 2 layers",
        ),
        (lambda s: s.update(widths=[2, math.inf, 3]), None, "a width must be a whole number .*inf"),
        (lambda s: s.update(widths=[2, 2.0, 3]), None, r"a width must be a whole number .*2\.0"),
        (lambda s: s.update(widths="223"), None, r"settings \(widths '223' for 2 layers"),
        (lambda s: s.update(limit=10**400), None, "settings"),
        (lambda s: s.update(limit=float("nan")), None, "limit nan"),
        (lambda s: s.update(limit=float("inf")), None, "limit inf"),
        (lambda s: s.update(observation=[["content"]]), None, "blocks must be strings"),
        (lambda s: s.update(observation=3), None, "settings"),
        (lambda s: s.update(activation="sin"), None, "unknown activation 'sin'"),
        (lambda s: s.update(widths=[2, 2]), None, r"widths \[2, 2\] for 2 layers"),
        (lambda s: s.update(widths=[2, 5, 3]), None, "expected"),
        (None, lambda t: t.pop("mean"), "'mean' is gone"),
        (None, lambda t: t["scale"].fill_(float("nan")), "not finite"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, settings, tensors, message):
    path = tmp_path / "router.safetensors"
    save_router(path, by_hand())
    rewritten(path, settings, tensors)
    with pytest.raises(InputError, match=message) as caught:
        load_router(path)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no router file"):
        load_router(tmp_path / "router.safetensors")
    save_file({"mean": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not written by maw_gym"):
        load_router(tmp_path / "other.safetensors")


class Trap:
    def __reduce__(self):
        return (open, ("trap.txt", "w"))


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (pickle.dump, torch.save):
        with open("router.safetensors", "wb") as file:
            write(Trap(), file)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            load_router(tmp_path / "router.safetensors")
    assert not (tmp_path / "trap.txt").exists()
