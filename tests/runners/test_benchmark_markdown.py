"""The tables that docs/performance.md has of a benchmark's numbers."""

from dataclasses import asdict

from runners.benchmarks.markdown import tables
from runners.benchmarks.measuring import row


def test_a_part_has_the_columns_that_it_has_numbers_for() -> None:
    rows = [
        row("search", "9 vectors", "search", [0.003, 0.002, 0.004], [0.002] * 3, 6, "queries/s"),
        row("search", "9 vectors", "faiss:Flat", [2.0], memory=3 * 2**20, more={"% recall": 99.5}),
        row("table", "pydocs, 7", "tables, cold", [15.25], None, 61, "queries/s"),
    ]
    content = {
        "device": "CPU, 2 CPU threads",
        "versions": {"torch": "2.13.0"},
        "machine": {"copy bytes/s": 44e9, "matrix FLOP/s": 222e9},
        "rows": [asdict(one) for one in rows],
    }
    assert tables(content, []).split("\n\n") == [
        "CPU, 2 CPU threads, torch 2.13.0: copies 44 GB/s, matrix products 222 GFLOP/s",
        "| case | row | time | times FAISS | per second | peak MB | more |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| 9 vectors | search | 3 ms (2 to 4) | 1.50 (1.00 to 2.00) | 2,000 queries |  |  |\n"
        "| 9 vectors | faiss:Flat | 2 s |  |  | 3 | 99.5 % recall |",
        "| case | row | time | per second |\n"
        "| --- | --- | ---: | ---: |\n"
        "| pydocs, 7 | tables, cold | 15.2 s | 4 queries |",
    ]
    assert tables(content, ["table"]).count("| case |") == 1
