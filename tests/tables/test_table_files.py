import json
import multiprocessing
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from maw_gym import files
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.tables import table_files
from maw_gym.tables.columns import COLUMNS
from maw_gym.tables.table_files import load_or_build, read_table

IDS = ("q0", "q/1 é", "q2", "q3", "q4")
WIDTHS = {
    "attention": 6,
    "entropy": 2,
    "focus": 2,
    "ndcg": 2,
    "listwise": 2,
    "retrieval": 22,
    "content": 3,
}


def columns(rows):
    """Column c has the value row + c / 8 in all its width."""
    row = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    return {
        name: np.repeat(row + np.float32(at / 8), WIDTHS[name], axis=1)
        for at, name in enumerate(COLUMNS)
    }


class Builder:
    """Builds columns, remembers the rows asked for, and fails at some."""

    def __init__(self, fails_at=None, problem=RuntimeError):
        self.rows = []
        self.fails_at, self.problem = fails_at, problem

    def __call__(self, rows):
        self.rows.append((rows.start, rows.stop))
        if rows.start == self.fails_at:
            raise self.problem
        return columns(rows)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(table_files, "CHUNK", 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tables" / "key.safetensors"


def check(table, ids=IDS):
    assert table.query_ids == ids
    for name, values in columns(slice(0, len(ids))).items():
        assert getattr(table, name).tolist() == values.tolist()


def test_a_table_is_built_once_and_then_read(path):
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == [(0, 2), (2, 4), (4, 5)]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == []


def test_the_file_is_safetensors(path):
    load_or_build(path, IDS, WIDTHS, columns)
    found = load_file(path)
    assert set(found) == {*COLUMNS, "query_ids"}
    assert json.loads(found["query_ids"].tobytes()) == list(IDS)
    assert found["content"].tolist() == [[row + 6 / 8] * 3 for row in range(5)]


def test_columns_are_read_only_memory_maps(path):
    table = load_or_build(path, IDS, WIDTHS, columns)
    assert str(path) in Path("/proc/self/maps").read_text()
    for name in COLUMNS[:-1]:
        with pytest.raises(ValueError, match="read-only"):
            getattr(table, name)[0, 0] = 1


def test_no_query(path):
    table = load_or_build(path, (), WIDTHS, columns)
    check(table, ())
    assert table.attention.shape == (0, 6)
    check(read_table(path), ())


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_build_goes_on(path, problem):
    with pytest.raises(problem):
        load_or_build(path, IDS, WIDTHS, Builder(fails_at=2, problem=problem))
    assert not path.exists()
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == [(2, 4), (4, 5)]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def rows_of(path):
    return sorted(path.with_suffix(".rows").iterdir())


def test_a_build_interrupted_before_its_last_step(path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", killed)
        with pytest.raises(KeyboardInterrupt):
            load_or_build(path, IDS, WIDTHS, columns)
    assert not path.exists()
    assert [file.name for file in rows_of(path)] == [
        "000000000000.safetensors",
        "000000000002.safetensors",
        "000000000004.safetensors",
    ]
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == []
    assert not path.with_suffix(".rows").exists()


def interrupted(path, ids=IDS):
    with pytest.raises(RuntimeError):
        load_or_build(path, ids, WIDTHS, Builder(fails_at=4))


def test_rows_damaged_before_the_build_goes_on_are_built_again(path):
    interrupted(path)
    first, second = rows_of(path)
    content = bytearray(second.read_bytes())
    content[-9] ^= 1  # a number that stays finite
    second.write_bytes(content)
    first.unlink()
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == [(0, 2), (2, 4), (4, 5)]


def test_an_unfinished_build_of_other_queries_starts_again(path):
    interrupted(path, ("another query", *IDS[1:]))
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == [(0, 2), (2, 4), (4, 5)]


def test_rows_under_the_name_of_others_are_built_again(path):
    interrupted(path)
    first, second = rows_of(path)
    first.replace(second)
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == [(0, 2), (2, 4), (4, 5)]


def changed(path, change):
    found = {name: tensor.numpy() for name, tensor in files.read(path, "table").tensors.items()}
    change(found)
    tensors = {name: torch.from_numpy(column.copy()) for name, column in found.items()}
    files.write(path, tensors, "table", {})


def header(text, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return json.dumps(
        {"entropy": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    ).encode()


DAMAGED = [
    b"",
    b"\0" * 7,
    b"\0" * 64,
    header(b"{}", length=2**42),
    header(b"[]"),
    header(b"3"),
    header(b"\xff\xff"),
    header(b"[" * 100_000),
    header(b'{"entropy": 3}'),
    header(entry("PY")) + b"abcd",
    header(entry(shape=[-1])) + b"abcd",
    header(entry(shape=[1e400])) + b"abcd",
    header(entry(shape=["x"])) + b"abcd",
    header(entry(shape=[2**40], offsets=[0, 2**42])) + b"abcd",
    header(entry(offsets=[4, 0])) + b"abcd",
    header(entry(offsets=[0.0, 4.0])) + b"abcd",
    header(entry(offsets=["0", "4"])) + b"abcd",
    header(entry(shape=[0, 2**70], offsets=[0, 0])),
    header(entry()) + b"abcd",  # no query ids
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_refused_and_built_again(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    check(load_or_build(path, IDS, WIDTHS, columns))
    check(read_table(path))


CHANGES = {
    "a column less": lambda found: found.pop("focus"),
    "a column more": lambda found: found.update(more=np.zeros((5, 1), np.float32)),
    "a row less": lambda found: found.update(focus=found["focus"][:4]),
    "depths less": lambda found: found.update(ndcg=found["ndcg"][:, :1].copy()),
    "one axis": lambda found: found.update(content=np.zeros(5, np.float32)),
    "bytes": lambda found: found.update(content=np.zeros((5, 3), np.uint8)),
    "ids that are numbers": lambda found: found.update(
        query_ids=np.frombuffer(b"[1, 2, 3, 4, 5]", np.uint8)
    ),
    "ids that are nothing": lambda found: found.update(query_ids=np.zeros(5, np.uint8)),
    "ids nested": lambda found: found.update(query_ids=np.full(100_000, ord("["), np.uint8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_of_other_columns_is_refused_and_built_again(path, change):
    load_or_build(path, IDS, WIDTHS, columns)
    changed(path, CHANGES[change])
    with pytest.raises(DamagedFileError, match=r"key\.safetensors") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    check(load_or_build(path, IDS, WIDTHS, columns))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query_ids", np.frombuffer(json.dumps(["x", *IDS[1:]]).encode(), np.uint8)),
        ("attention", np.zeros((5, 7), np.float32)),
    ],
)
def test_another_table_under_the_name_is_replaced(path, name, value):
    load_or_build(path, IDS, WIDTHS, columns)
    changed(path, lambda found: found.update({name: value}))
    read_table(path)
    check(load_or_build(path, IDS, WIDTHS, columns))


def test_no_file(path):
    with pytest.raises(InputError, match="no table file"):
        read_table(path)


def build_slowly(path, log, start):
    def build(rows):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        return columns(rows)

    start.wait(60)
    check(load_or_build(path, IDS, WIDTHS, build))


def test_of_two_processes_one_builds(path, tmp_path):
    log = tmp_path / "log"
    # Forking a process with threads is what Python warns of: start afresh.
    context = multiprocessing.get_context("spawn")
    arguments = (path, log, context.Barrier(2))
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().split()) == 1
    check(read_table(path))


def test_a_number_changed_by_hand_is_noticed(path):
    load_or_build(path, IDS, WIDTHS, columns)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # one bit, of a number that stays finite
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        read_table(path)
    builder = Builder()
    check(load_or_build(path, IDS, WIDTHS, builder))
    assert builder.rows == [(0, 2), (2, 4), (4, 5)]
