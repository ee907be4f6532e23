"""The tables of docs/performance.md from what `runners/benchmark.py --out FILE` has written.

python -m runners.benchmarks.markdown FILE [PART ...]
"""

import json
import sys
from pathlib import Path
from typing import Any

REFERENCE = {
    "attention": "the floor",
    "environment": "`table[index]`",
    "training": "PPO",
    "search": "FAISS",
    "profile": "the stage",
}


def tables(content: dict[str, Any], parts: list[str]) -> str:
    """One table for each part, with the columns that it has numbers for.

    Args:
        content: of the file.
        parts: which, all without any.
    """
    rows: list[dict[str, Any]] = content["rows"]
    names = parts or list(dict.fromkeys(row["part"] for row in rows))
    made = [_table(name, [row for row in rows if row["part"] == name]) for name in names]
    machine = content["machine"]
    ceilings = (
        f"{content['device']}, torch {content['versions']['torch']}: copies"
        f" {machine['copy bytes/s'] / 1e9:,.0f} GB/s, matrix products"
        f" {machine['matrix FLOP/s'] / 1e9:,.0f} GFLOP/s"
    )
    return "\n\n".join([ceilings, *made])


def _table(part: str, rows: list[dict[str, Any]]) -> str:
    rated = any(row["ratio"] is not None for row in rows)
    counted = any(row["per_second"] is not None for row in rows)
    weighed = any(row["memory"] is not None for row in rows)
    more = any(row["more"] for row in rows)
    titles = ["case", "row", "time"]
    titles += [f"times {REFERENCE.get(part, 'the reference')}"] * rated
    titles += ["per second"] * counted + ["peak MB"] * weighed + ["more"] * more
    rules = ["---", "---", *["---:"] * (len(titles) - 2)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, rules)]
    for row in rows:
        cells = [row["case"], row["name"], _spread(row)]
        if rated:
            cells.append(_ratio(row))
        if counted:
            rate = row["per_second"]
            cells.append("" if rate is None else f"{rate:,.0f} {row['unit'].partition('/')[0]}")
        if weighed:
            cells.append("" if row["memory"] is None else f"{row['memory'] / 2**20:,.0f}")
        if more:
            cells.append(", ".join(f"{value:,.1f} {name}" for name, value in row["more"].items()))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(row: dict[str, Any]) -> str:
    unit, factor = ("s", 1) if row["seconds"] >= 1 else ("ms", 1000)
    middle, low, high = (factor * row[name] for name in ("seconds", "low", "high"))
    if low == high:
        return f"{middle:,.3g} {unit}" if middle < 1000 else f"{middle:,.0f} {unit}"
    return f"{middle:,.3g} {unit} ({low:,.3g} to {high:,.3g})"


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return ""
    if row["ratio_low"] == row["ratio_high"]:
        return f"{row['ratio']:.2f}"
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]))
