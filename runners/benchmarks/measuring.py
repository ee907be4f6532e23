"""How rows of the benchmark are timed, and how they are printed."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import torch

# What a part's ratios are times of.
REFERENCE: Final = {
    "attention": "the floor",
    "environment": "`table[index]`",
    "training": "PPO",
    "search": "FAISS",
}
Functions = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One row of the table: median seconds over rounds, with the quickest and the slowest round."""

    part: str
    case: str
    name: str
    seconds: float
    low: float
    high: float
    ratio: tuple[float, float, float] | None = None
    per_second: float | None = None
    unit: str = ""
    memory: int | None = None
    more: Mapping[str, float] = field(default_factory=dict)


def row(
    part: str,
    case: str,
    name: str,
    times: Sequence[float],
    reference: Sequence[float] | None = None,
    count: float | None = None,
    unit: str = "",
    memory: int | None = None,
    more: Mapping[str, float] | None = None,
) -> Row:
    """The row of the `times` of all rounds; `count` is what one call does, for `per_second`."""
    seconds = statistics.median(times)
    ratios = [one / other for one, other in zip(times, reference or (), strict=False)]
    ratio = (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None
    rate = None if count is None else count / seconds
    span = (seconds, min(times), max(times))
    return Row(part, case, name, *span, ratio, rate, unit, memory, more or {})


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table for each part, with the columns that it has numbers for."""
    parts = dict.fromkeys(row.part for row in rows)
    return "\n\n".join(_table(part, [row for row in rows if row.part == part]) for part in parts)


def _table(part: str, rows: Sequence[Row]) -> str:
    ratio = f"times {REFERENCE.get(part, 'the reference')}"
    lines = [
        {
            "case": row.case,
            "row": row.name,
            "time": _time(row),
            ratio: "{:.2f} ({:.2f} to {:.2f})".format(*row.ratio) if row.ratio else "",
            "per second": f"{row.per_second:,.0f} {row.unit.partition('/')[0]}"
            if row.per_second
            else "",
            "peak MB": "" if row.memory is None else f"{row.memory / 2**20:,.0f}",
            "more": ", ".join(f"{value:,.1f} {name}" for name, value in row.more.items()),
        }
        for row in rows
    ]
    titles = [title for title in lines[0] if any(line[title] for line in lines)]
    rule = ["---" if title in ("case", "row") else "---:" for title in titles]
    cells = [[line[title] for title in titles] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *cells))


def _time(row: Row) -> str:
    unit, factor = ("s", 1) if row.seconds >= 1 else ("ms", 1000)
    middle, low, high = (factor * seconds for seconds in (row.seconds, row.low, row.high))
    spread = "" if low == high else f" ({low:,.3g} to {high:,.3g})"
    return f"{middle:,.3g} {unit}{spread}" if middle < 1000 else f"{middle:,.0f} {unit}{spread}"


def interleaved(
    functions: Functions, device: torch.device, rounds: int, budget: float
) -> dict[str, list[float]]:
    """Seconds per call of every function, round by round, after one call to warm up."""
    calls, turns = {}, {}
    for name, function in functions.items():
        function()
        once = max(_seconds(function, device, 1), 1e-9)
        calls[name] = max(1, min(1000, int(0.01 / once)))
        turns[name] = max(2, min(rounds, int(budget / once)))
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(max(turns.values())):
        for name, function in functions.items():
            if turn < turns[name]:
                if calls[name] > 1:
                    function()  # after others, whose memory and code lie in the caches
                found[name].append(_seconds(function, device, calls[name]))
    return found


def _seconds(function: Callable[[], object], device: torch.device, calls: int) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    wait(device)
    return (time.perf_counter() - start) / calls


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch held at once during a call, beyond those it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_library(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    held = peak = 0
    # The events are in the order of their start; allocations and releases are among them. Read as
    # they are: torch takes minutes to make objects of hundreds of thousands.
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the lines that torch's profiler writes to stderr from C++ whenever it starts."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def machine(device: torch.device, rounds: int) -> dict[str, float]:
    """Two ceilings of the device: bytes per second of a large copy, FLOP/s of a matrix product."""
    cuda = device.type == "cuda"
    size, side = (1 << 30, 8192) if cuda else (1 << 27, 1536)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    right = torch.randn_like(left)
    functions = {"copy": lambda: target.copy_(source), "product": lambda: left @ right}
    times = interleaved(functions, device, rounds, budget=2.0)
    return {
        "copy bytes/s": 2 * size / statistics.median(times["copy"]),
        "matrix FLOP/s": 2 * side**3 / statistics.median(times["product"]),
    }
