"""The benchmark: its rows agree with each other, its arithmetic is right, its command runs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maw_gym.attention.reference import depth_statistics
from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.errors import InputError
from maw_gym.runners.benchmark import BenchmarkSettings, main
from maw_gym.runners.benchmarks.attention import (
    BY_DEPTH,
    COPIES,
    FLOOR,
    MINILM,
    OURS,
    TENSOR,
    Shape,
    attention_rows,
    depth_by_depth,
    random_inputs,
    tensor_way,
)
from maw_gym.runners.benchmarks.measuring import interleaved, peak_memory, row, tables
from maw_gym.runners.benchmarks.search import faiss_rows, size_rows, synthetic_texts
from maw_gym.runners.benchmarks.stack import synthetic_queries
from maw_gym.runners.experiments.runs import run_main

CPU = torch.device("cpu")


def test_all_ways_compute_the_same() -> None:
    inputs = random_inputs([9, 4], heads=2, depths=3, width=16, device=CPU)
    state, entropy, focus, pooled = depth_statistics(inputs)
    for got, want in zip(tensor_way(inputs), (state, entropy, focus, pooled), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    states, outcomes = depth_by_depth(inputs)
    torch.testing.assert_close(states, state, atol=1e-5, rtol=1e-5)
    for text, d in np.ndindex(2, 3):
        one, other, embedding = outcomes[text][d]
        assert (one, other) == pytest.approx(
            (entropy[text, d].item(), focus[text, d].item()), abs=1e-5
        )
        torch.testing.assert_close(embedding.flatten(), pooled[text, d], atol=1e-5, rtol=1e-5)


def test_rows_of_one_problem() -> None:
    assert (str(Shape(4, 128)), str(Shape(2, 3, **MINILM))) == ("4 x 128", "2 x 3, h = 384")
    assert Shape(2, 3, **MINILM).inputs(CPU).value.shape == (2, 12, 3, 32)
    inputs = random_inputs([4, 4], heads=2, depths=3, width=16, device=CPU)
    rows = {one.name: one for one in attention_rows("small", inputs, rounds=3, budget=1.0)}
    assert [*rows] == [BY_DEPTH, TENSOR, OURS, FLOOR, COPIES]
    assert rows[FLOOR].ratio == (1, 1, 1)
    assert rows[OURS].per_second == pytest.approx(2 / rows[OURS].seconds)  # two texts
    # The 5D tensor alone: 2 texts, 2 heads, 4 x 4 weights at 3 depths, 4 bytes each.
    assert (rows[TENSOR].memory or 0) >= 2 * 2 * 4 * 4 * 3 * 4


def test_a_row_by_hand() -> None:
    made = row("part", "case", "name", [2.0, 4.0, 9.0], [1.0, 4.0, 3.0], count=8, unit="steps/s")
    assert (made.seconds, made.low, made.high) == (4, 2, 9)
    assert (made.ratio, made.per_second) == ((2, 1, 3), 2)


def test_a_part_has_the_columns_that_it_has_numbers_for() -> None:
    rows = [
        row("search", "9 vectors", "search", [0.003, 0.002, 0.004], [0.002] * 3, 6, "queries/s"),
        row("search", "9 vectors", "faiss:Flat", [2.0], memory=3 * 2**20, more={"% recall": 99.5}),
        row("table", "pydocs, 7", "tables, cold", [15.25], None, 61, "queries/s"),
    ]
    assert tables(rows) == (
        "| case | row | time | times FAISS | per second | peak MB | more |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| 9 vectors | search | 3 ms (2 to 4) | 1.50 (1.00 to 2.00) | 2,000 queries |  |  |\n"
        "| 9 vectors | faiss:Flat | 2 s |  |  | 3 | 99.5 % recall |\n\n"
        "| case | row | time | per second |\n"
        "| --- | --- | ---: | ---: |\n"
        "| pydocs, 7 | tables, cold | 15.2 s | 4 queries |"
    )


def test_rounds_are_interleaved_and_bounded() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = interleaved(functions, CPU, rounds=3, budget=10.0)
    assert [len(times) for times in found.values()] == [3, 3]
    # All calls of a round stand together.
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert turns == ["a", "b"] * 4
    assert len(interleaved(functions, CPU, rounds=5, budget=0.0)["a"]) == 2


def test_peak_memory_by_hand() -> None:
    def function() -> None:
        first = torch.ones(1000)  # 4,000 bytes
        del first
        second = torch.ones(2000)
        third = torch.ones(500)
        del second, third

    assert peak_memory(function, CPU) == 4 * 2500


def test_extra_memory_is_small_and_flat_in_depth() -> None:
    peaks = []
    for depths in (16, 64):
        inputs = random_inputs([512, 512], heads=8, depths=depths, width=256, device=CPU)
        peaks.append(peak_memory(lambda p=inputs: depth_statistics(p), CPU))
    tensor = 2 * 8 * 512 * 512 * 64 * 4
    assert peaks[1] < tensor / 20
    assert peaks[1] < 1.1 * peaks[0]


def test_synthetic_queries_have_24_tokens_and_one_document(tiny: Collection) -> None:
    embedder = untrained_embedder(tiny.doc_texts)
    made = synthetic_queries(tiny, embedder, 20, documents=3)
    assert [len(queries.ids) for queries in made.splits.values()] == [0, 20, 0, 0]
    train = made.splits["train"]
    assert [len(ids) for ids in embedder.query_ids(train.texts)] == [24] * 20
    assert made.doc_ids == tiny.doc_ids[:3]
    assert all(len(judged) == 1 and set(judged) < set(made.doc_ids) for judged in train.relevance)
    assert made.provenance["content"] != tiny.provenance["content"]


def test_synthetic_texts_have_the_length_and_the_law_asked_for() -> None:
    texts = list(synthetic_texts(untrained_embedder(()), 500, (3, 5), seed=0))
    assert (len(texts), {len(text.split()) for text in texts}) == (500, {3, 4, 5})
    words = " ".join(texts).split()
    ((_, count),) = Counter(words).most_common(1)
    # 1 / r of some 15,000 words: the first has 1 / (ln 15,000 + .58) = .098 of all
    assert count / len(words) == pytest.approx(0.098, abs=0.03)
    assert texts == list(synthetic_texts(untrained_embedder(()), 500, (3, 5), seed=0))


def test_every_size_is_measured_in_a_process_of_its_own() -> None:
    rows = size_rows(sizes=(40,), queries=5, hybrid=True)
    assert [(one.case, one.name) for one in rows] == [
        ("40 documents", "encode and index"),
        ("40 documents", "search of 5"),
    ]
    for one, count in zip(rows, (40, 5), strict=True):
        assert one.per_second == pytest.approx(count / one.seconds)
        # torch and the encoder alone take some hundred megabytes
        assert one.memory is not None
        assert 100e6 < one.memory < 4e9


def test_recall_is_of_what_exact_search_finds() -> None:
    pytest.importorskip("faiss")
    found = faiss_rows(300, 20, width=16, rounds=2, approximate=("Flat", "HNSW8"))
    rows = {one.name: one for one in found}
    assert rows["FAISS IndexFlatIP"].ratio == (1, 1, 1)
    assert rows["faiss:Flat"].more["% recall"] == 100
    assert 50 < rows["faiss:HNSW8"].more["% recall"] <= 100


def test_the_command_prints_a_table_of_each_part_and_writes_json(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "benchmark.json"
    arguments = ["--quick", "--dataset", str(tiny_folder), "--out", str(out), "--device", "cpu"]
    arguments += ["--num-envs", "8", "--timesteps", "64", "--synthetic", "10"]
    run_main(BenchmarkSettings, main, arguments)
    text = capsys.readouterr().out
    assert text.count("| case | row | time |") == 4
    content = json.loads(out.read_text())
    rows = {(one["part"], one["name"]) for one in content["rows"]}
    assert rows == {
        *(("attention", name) for name in (BY_DEPTH, TENSOR, OURS, FLOOR, COPIES)),
        *(("table", name) for name in ("documents", "tables, cold", "tables, cached")),
        *(("environment", name) for name in ("table[index]", "MAWDepth-v0", "CartPole-v1")),
        *(("training", name) for name in ("PPO", "GRPO")),
    }
    assert "table[index]" in text
    assert content["settings"]["timesteps"] == 64
    assert set(content["machine"]) == {"copy bytes/s", "matrix FLOP/s"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ("speed",)}, "parts must be 'attention', 'table', 'environment'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"timesteps": 0}, "timesteps must be at least 1, got 0"),
        ({"num_envs": 12}, "num_envs must be a multiple of 8, got 12"),
        ({"synthetic": -1}, "synthetic must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchmarkSettings(**settings)
