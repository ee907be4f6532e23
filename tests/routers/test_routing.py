import numpy as np
import pytest
import torch

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


def test_logits_and_depths_by_hand():
    # (3, 4): standardised (4, 1), hidden relu(4, 0) = (4, 0), logits (4, 0.5, 0).
    # (0, 0): standardised (-2, -1), hidden relu(-2, 2) = (0, 2), logits (0, 2.5, -2).
    given, router = np.array([[3, 4], [0, 0]], np.float32), by_hand()
    assert router(torch.from_numpy(given)).tolist() == [[4.0, 0.5, 0.0], [0.0, 2.5, -2.0]]
    depths, state = router.predict(given)
    assert (depths.tolist(), depths.dtype, state) == ([0, 1], np.int64, None)
    # the signature is that of SB3
    one, _ = router.predict(given[1], state=None, episode_start=None, deterministic=True)
    assert (one.shape, one) == ((), 1)


def test_tanh_and_a_limit_by_hand():
    t4, t0 = np.tanh(4.0), np.tanh(0.0)
    logits = by_hand("tanh")(tensor([[3, 4]])).detach()
    np.testing.assert_allclose(logits, [[t4, t0 + 0.5, t4 + t0 - 4]], rtol=1e-6)
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


def test_predict_samples_from_the_softmax():
    torch.manual_seed(0)
    given = np.repeat(np.array([[3, 4]], np.float32), 4000, axis=0)
    depths, _ = by_hand().predict(given, deterministic=False)
    # softmax(4, 0.5, 0) = 1 / (1 + e^-3.5 + e^-4) (1, e^-3.5, e^-4)
    shares = np.bincount(depths, minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.9537, 0.0288, 0.0175], atol=0.012)


@pytest.mark.parametrize(
    "router", [by_hand(), by_hand(limit=2.5), by_hand("tanh"), shared_by_hand()]
)
def test_a_file_gives_the_router_back(tmp_path, router):
    save_router(tmp_path / "router.safetensors", router)
    again = load_router(tmp_path / "router.safetensors")
    given = torch.randn(20, router.inputs, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.equal(again(given), router(given))
    for name in ("observation", "settings", "limit", "shared", "depths", "activation"):
        assert getattr(again, name) == getattr(router, name)
    assert again.settings == TELLS
    assert not again.training


@pytest.mark.parametrize(
    ("layers", "more", "message"),
    [
        ([(3, 2, 3)], {"activation": "elu"}, "unknown activation 'elu'; choose one of relu, tanh"),
        ([(3, 4, 3)], {}, r"weight \(3, 4\) and bias \(3,\) after 2 numbers"),
        ([(3, 2, 3)], {"scale": torch.ones(1)}, "do not fit"),
        ([(1, 5, 2)], {"shared": True}, r"weight \(1, 5\) and bias \(2,\) after 3 numbers"),
        ([(1, 4, 3)], {"shared": True}, "equally many numbers of each depth, got 2 for 3"),
        ([], {"shared": True}, "got 2 for 0"),
        ([], {"observation": ("mood",)}, "unknown observation block 'mood'"),
    ],
)
def test_what_does_not_fit_is_refused(layers, more, message):
    given = [(torch.zeros(rows, columns), torch.zeros(biases)) for rows, columns, biases in layers]
    about = {"activation": "relu", "mean": torch.zeros(2), "scale": torch.ones(2)}
    about |= {"observation": ("content",), "settings": {}} | more
    with pytest.raises(InputError, match=message):
        DepthRouter(given, **about)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, _: s.pop("activation"), "settings"),
        (lambda s, _: s.update(limit=10**400), "settings"),
        (lambda s, _: s.update(limit=float("nan")), "limit nan"),
        (lambda s, _: s.update(limit=float("inf")), "limit inf"),
        (lambda s, _: s.update(limit=-1), "limit -1"),
        (lambda s, _: s.update(observation=[["content"]]), "blocks must be strings"),
        (lambda s, _: s.update(router=3), "settings"),
        (lambda _, t: t.pop("layers.0.weight"), r"'layers\.0\.weight' is gone"),
        (lambda _, t: t.update(more=torch.ones(1)), "'more' is unknown"),
        (lambda _, t: t.update(mean=torch.zeros(2, 1)), r"shape \(2, 1\), expected"),
        (lambda _, t: t.update({"layers.1.bias": torch.zeros(2)}), "layers do not fit"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "router.safetensors"
    save_router(path, by_hand())
    settings, tensors = files.read(path, "router")
    change(settings, tensors)
    files.write(path, tensors, "router", settings)
    with pytest.raises(InputError, match=message) as caught:
        load_router(path)
    assert "\n" not in str(caught.value)
