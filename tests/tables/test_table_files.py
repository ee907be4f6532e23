import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import TABLE, first_rows
from safetensors.numpy import load_file

from maw_gym import files
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.tables.depth_table import BLOCKS, TERMS
from maw_gym.tables.task import RetrievalTask, read_table, write_table


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tables" / "key.safetensors"
    write_table(path, TABLE)
    return path


def check(found, table=TABLE):
    assert found.query_ids == table.query_ids
    assert list(found.columns) == list(table.columns)
    for name, column in table.columns.items():
        assert found.columns[name].tolist() == column.tolist()


def test_a_table_is_read_as_it_was_written(path):
    check(read_table(path))
    found = load_file(path)
    assert set(found) == {*TERMS, *BLOCKS, "query_ids"}
    assert json.loads(found["query_ids"].tobytes()) == list(TABLE.query_ids)


def test_columns_are_read_only_memory_maps(path):
    table = read_table(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    for column in table.columns.values():
        with pytest.raises(ValueError, match="read-only"):
            column[0, 0] = 1


def test_no_query(path):
    write_table(path, first_rows(TABLE, 0))
    check(read_table(path), first_rows(TABLE, 0))
    assert read_table(path).block("attention").shape == (0, 64)


CHANGES = {
    "a column less": lambda found: found.pop("focus"),
    "a column more": lambda found: found.update(more=np.zeros((3, 1), np.float32)),
    "a row less": lambda found: found.update(focus=found["focus"][:2]),
    "depths less": lambda found: found.update(ndcg=found["ndcg"][:, :1].copy()),
    "a block of other depths": lambda found: found.update(profile=np.zeros((3, 6), np.float32)),
    "one axis": lambda found: found.update(content=np.zeros(3, np.float32)),
    "bytes": lambda found: found.update(content=np.zeros((3, 3), np.uint8)),
    "ids that are numbers": lambda found: found.update(
        query_ids=np.frombuffer(b"[1, 2, 3]", np.uint8)
    ),
    "ids that are nothing": lambda found: found.update(query_ids=np.zeros(5, np.uint8)),
    "ids nested": lambda found: found.update(query_ids=np.full(100_000, ord("["), np.uint8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_of_other_columns_is_refused(path, change):
    found = {name: t.numpy() for name, t in files.read(path, "table").tensors.items()}
    CHANGES[change](found)
    tensors = {name: torch.from_numpy(column.copy()) for name, column in found.items()}
    files.write(path, tensors, "table", {})
    with pytest.raises(DamagedFileError, match=r"key\.safetensors") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_other_queries_and_no_file(path):
    with pytest.raises(DamagedFileError, match="is the table of other queries"):
        read_table(path, ("another", *TABLE.query_ids[1:]))
    path.unlink()
    with pytest.raises(InputError, match="no table file"):
        read_table(path)


@pytest.mark.parametrize("damage", ["truncated", "a bit", "of other queries"])
def test_a_damaged_table_is_built_again(task, home, damage, caplog):
    task = RetrievalTask(task.collection, task.embedder)
    expected, path = task.table("test"), task.table_path("test")
    content = bytearray(path.read_bytes())
    if damage == "of other queries":
        task.table("validation")
        content = bytearray(task.table_path("validation").read_bytes())
    else:
        content[-40] ^= 1  # of a number that stays finite
    path.unlink()  # the table in memory maps the old file
    path.write_bytes(content[:-8] if damage == "truncated" else content)
    check(RetrievalTask(task.collection, task.embedder).table("test"), expected)
    assert "it is made anew" in caplog.text
    check(read_table(path), expected)


def test_an_interrupted_table_leaves_nothing(task, home, monkeypatch):
    task = RetrievalTask(task.collection, task.embedder)
    monkeypatch.setattr("maw_gym.tables.task.PORTION", 4)
    original = RetrievalTask._columns

    def killed(self, split, start):
        if start:
            raise KeyboardInterrupt
        return original(self, split, start)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalTask, "_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            task.table("test")
    assert not list((home / "tables").glob("*.safetensors"))
    assert len(task.table("test")) == 7
