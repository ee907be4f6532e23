import numpy as np
import pytest
import torch
from hand_made import TABLE, random_table

from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.depth_table import (
    BLOCKS,
    Block,
    DepthTable,
    checked_blocks,
    in_range,
    numbers_per_depth,
)
from maw_gym.tables.task import RetrievalTask


def test_blocks_stand_side_by_side_in_the_order_given():
    found = TABLE.observation(["content", "attention"])
    assert found[1].tolist() == [-1.0, 0.0, *np.eye(64)[1]]
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    profile = [0.0, 0.2, 0.6, 1.0, 1.0, 0.8, 0.4, 0.1]
    assert TABLE.observation("profile")[0].tolist() == pytest.approx(profile)  # a name alone
    assert checked_blocks("attention") == ("attention",)


def test_the_space_holds_every_observation():
    table, blocks = random_table(queries=4, depths=6), ["attention", "profile", "content"]
    space = table.observation_space(blocks)
    assert space.low.tolist() == [0.0] * 76 + [-1.0] * 5
    assert space.high.tolist() == [1.0] * 81
    assert all(space.contains(row) for row in table.observation(blocks))
    space = TABLE.observation_space("retrieval")
    # First, two gaps, mean, spread and entropy of ten and of fifty, overlap, same first.
    low, high = [-1, 0, 0, -1, 0, 0, -1, 0, 0, 0, 0], [1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert space.low.tolist() == np.repeat(low, 4).tolist()
    assert space.high.tolist() == np.repeat(high, 4).tolist()


@pytest.mark.parametrize("blocks", [(), ("content", "content"), ("content", "color"), "color", ""])
def test_wrong_blocks(blocks):
    with pytest.raises(InputError, match=r"^.* attention, profile, retrieval, content.*$"):
        TABLE.observation(blocks)
    some = DepthTable(("q",), *np.zeros((4, 1, 2), np.float32), blocks={"content": np.ones((1, 3))})
    with pytest.raises(InputError, match=r"^this table has no observation block 'profile'; it has"):
        some.observation(["content", "profile"])


def test_roundings_are_cut_and_nothing_worse():
    found = in_range("content", np.array([[1.0000002, -1.0000001]], np.float32), -1, 1)
    assert found.tolist() == [[1.0, -1.0]]
    for low, value in ((0, -0.5), (-1, np.nan), (0, 1.1)):
        with pytest.raises(FloatingPointError, match=r"^color outside \[.*, 1\]; the encoder"):
            in_range("color", np.array([[value]], np.float32), low, 1)


def test_a_new_block_is_one_entry(task, monkeypatch, home):
    """The table computes it, the space bounds it, a router sees it, the network knows it."""
    block = Block("2 * D", "norms", lambda seen: seen.profile / 2, high=0.5, per_depth=2)
    monkeypatch.setitem(BLOCKS, "half", block)
    for _ in range(2):  # built, and read
        table = RetrievalTask(task.collection, task.embedder).table("test")
        assert table.block("half").tolist() == (table.block("profile") / 2).tolist()
    assert table.observation_space("half").high.tolist() == [0.5] * 8
    assert numbers_per_depth(["half", "profile"]) == 4
    assert numbers_per_depth(["half", "attention"]) == 0
    layers, about = [(torch.zeros(4, 8), torch.zeros(4))], {"encoder": task.embedder.fingerprint()}
    router = DepthRouter(layers, "relu", torch.zeros(8), torch.ones(8), ["half"], about)
    seen = RoutedEncoder(task.embedder, router).observe(task.collection.splits["test"].texts)
    assert seen == pytest.approx(table.block("half"), abs=1e-6)
    assert len(list((home / "tables").glob("*.safetensors"))) == 1
