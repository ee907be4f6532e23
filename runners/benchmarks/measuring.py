"""How rows of the benchmark are timed, and how they are printed."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from maw_gym.runners.experiments.report import markdown

# What a part's ratios are times of.
REFERENCE: Final = {
    "attention": "the floor",
    "environment": "`table[index]`",
    "training": "PPO",
    "search": "FAISS",
}


@dataclass(frozen=True)
class Row:
    """One row of a table: who did what, and how long it took."""

    part: str
    case: str
    name: str
    times: Sequence[float]  # seconds of one call, round by round
    reference: Sequence[float] = ()  # those of what a ratio is to
    count: float | None = None  # what one call does, for a rate
    unit: str = ""
    memory: int | None = None  # bytes at its peak
    more: Mapping[str, float] = field(default_factory=dict)

    def cells(self) -> dict[str, str]:
        """The row's texts by column: medians, with the least and the greatest of all rounds."""
        seconds = statistics.median(self.times)
        unit, factor = ("s", 1) if seconds >= 1 else ("ms", 1000)
        middle = f"{seconds:,.0f}" if seconds >= 1000 else f"{factor * seconds:,.3g}"
        spread = f" ({factor * min(self.times):,.3g} to {factor * max(self.times):,.3g})"
        ratios = [one / other for one, other in zip(self.times, self.reference, strict=False)]
        ratio = ""
        if ratios:
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        return {
            "case": self.case,
            "row": self.name,
            "time": f"{middle} {unit}" + (spread if len(self.times) > 1 else ""),
            f"times {REFERENCE.get(self.part, '')}": ratio,
            "per second": f"{self.count / seconds:,.0f} {self.unit}" if self.count else "",
            "peak MB": "" if self.memory is None else f"{self.memory / 2**20:,.0f}",
            "more": ", ".join(f"{value:,.1f} {name}" for name, value in self.more.items()),
        }


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table for each part, with the columns that it has numbers for."""
    found = []
    for part in dict.fromkeys(row.part for row in rows):
        lines = [row.cells() for row in rows if row.part == part]
        titles = [title for title in lines[0] if any(line[title] for line in lines)]
        found.append(markdown(titles, [[line[title] for title in titles] for line in lines], 2))
    return "\n\n".join(found)


def interleaved(
    functions: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, budget: float
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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of every start
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    held = peak = 0
    # The events are in the order of their start; allocations and releases are among them. Read as
    # they are: torch takes minutes to make objects of hundreds of thousands.
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


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
