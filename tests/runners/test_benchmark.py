"""The benchmark: its rows agree with each other, its arithmetic is right, its command runs."""

import json

import pytest
import torch

from maw_gym.attention.reference import depth_statistics
from maw_gym.runners.benchmark import BenchmarkSettings, main
from maw_gym.runners.benchmarks.attention import FLOOR, OURS, TENSOR, random_inputs, tensor_way
from maw_gym.runners.benchmarks.measuring import Row, interleaved, peak_memory, tables
from maw_gym.runners.benchmarks.stack import faiss_rows, size_rows
from maw_gym.runners.experiments.runs import run_main

CPU = torch.device("cpu")


def test_all_ways_compute_the_same():
    inputs = random_inputs([9, 4], heads=2, depths=3, width=16, device=CPU)
    state, entropy, focus, pooled = depth_statistics(inputs)
    for got, want in zip(tensor_way(inputs), (state, entropy, focus, pooled), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_part_has_the_columns_that_it_has_numbers_for():
    rows = [
        Row("search", "9 vectors", "search", [0.003, 0.002, 0.004], [0.002] * 3, 6, "queries"),
        Row("search", "9 vectors", "faiss", [2.0], memory=3 * 2**20, more={"% recall": 99.5}),
        Row("table", "pydocs, 7", "tables, cold", [1525.0], (), 6100, "queries"),
    ]
    lines = [line.strip("|").split("|") for line in tables(rows).splitlines()]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["case", "row", "time", "times FAISS", "per second", "peak MB", "more"],
        ["---", "---", *["---:"] * 5],
        ["9 vectors", "search", "3 ms (2 to 4)", "1.50 (1.00 to 2.00)", "2,000 queries", "", ""],
        ["9 vectors", "faiss", "2 s", "", "", "3", "99.5 % recall"],
        [""],
        ["case", "row", "time", "per second"],
        ["---", "---", "---:", "---:"],
        ["pydocs, 7", "tables, cold", "1,525 s", "4 queries"],
    ]


def test_rounds_are_interleaved_and_bounded():
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = interleaved(functions, CPU, rounds=3, budget=10.0)
    assert [len(times) for times in found.values()] == [3, 3]
    # All calls of a round stand together.
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert turns == ["a", "b"] * 4
    assert len(interleaved(functions, CPU, rounds=5, budget=0.0)["a"]) == 2


def test_peak_memory_by_hand(capfd):
    def function():
        first = torch.ones(1000)  # 4,000 bytes
        del first
        second = torch.ones(2000)
        third = torch.ones(500)
        del second, third

    assert peak_memory(function, CPU) == 4 * 2500
    assert capfd.readouterr().err == ""  # of torch's profiler


def test_extra_memory_is_small_and_flat_in_depth():
    peaks = []
    for depths in (16, 64):
        inputs = random_inputs([512, 512], heads=8, depths=depths, width=256, device=CPU)
        peaks.append(peak_memory(lambda p=inputs: depth_statistics(p), CPU))
    tensor = 2 * 8 * 512 * 512 * 64 * 4
    assert peaks[1] < tensor / 20
    assert peaks[1] < 1.1 * peaks[0]


def test_every_size_is_measured_in_a_process_of_its_own():
    first, second = size_rows(sizes=(40,), queries=5)
    assert (first.case, first.name, first.count) == ("40 documents", "encode and index", 40)
    assert (second.name, second.count) == ("search of 5", 5)
    # torch and the encoder alone take some hundred megabytes
    assert 100e6 < (first.memory or 0) < 4e9


def test_recall_is_of_what_exact_search_finds():
    pytest.importorskip("faiss")
    found = faiss_rows(300, 20, width=16, rounds=2, approximate=("Flat", "HNSW8"))
    rows = {one.name: one for one in found}
    assert rows["FAISS IndexFlatIP"].times == rows["search"].reference
    assert rows["faiss:Flat"].more["% recall"] == 100
    assert 50 < rows["faiss:HNSW8"].more["% recall"] <= 100


def test_the_command_prints_a_table_of_each_part_and_writes_json(tiny_folder, tmp_path, capsys):
    out = tmp_path / "new" / "benchmark.json"
    arguments = ["--quick", "--dataset", str(tiny_folder), "--out", str(out), "--device", "cpu"]
    arguments += ["--num-envs", "8", "--timesteps", "64"]
    run_main(BenchmarkSettings, main, arguments)
    text = capsys.readouterr().out
    assert sum(line.startswith("| case ") for line in text.splitlines()) == 4
    content = json.loads(out.read_text())
    rows = {one["name"]: one for one in reversed(content["rows"])}
    assert {(one["part"], name) for name, one in rows.items()} == {
        *(("attention", name) for name in (TENSOR, OURS, FLOOR)),
        *(("table", name) for name in ("documents", "tables, cold", "tables, cached")),
        *(("environment", name) for name in ("table[index]", "MAWDepth-v0", "CartPole-v1")),
        *(("training", name) for name in ("PPO", "GRPO")),
    }
    assert [rows[OURS][key] for key in ("case", "count", "unit")] == ["2 x 9", 2, "queries"]
    assert len(rows[OURS]["times"]) == 2
    # The 5D tensor alone: 2 texts, 8 heads, 9 x 9 weights at 32 depths, 4 bytes each.
    assert rows[TENSOR]["memory"] >= 2 * 8 * 9 * 9 * 32 * 4
    assert content["settings"]["timesteps"] == 64
    assert set(content["machine"]) == {"copy bytes/s", "matrix FLOP/s"}
