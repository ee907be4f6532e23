"""How rows of the benchmark are timed, and what is kept of each."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Functions = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        part: one of `runners.benchmark.PARTS`.
        case: shape or size.
        name: what was measured.
        seconds: median of the rounds.
        low: quickest round.
        high: slowest round.
        ratio: median over rounds of this row's time by the reference's in the same round.
        ratio_low: least of these.
        ratio_high: greatest of these.
        per_second: queries, steps or whatever `unit` says, from the median.
        unit: of `per_second`.
        memory: bytes allocated at once beyond the inputs; None where it was not measured.
        more: further numbers by name.
    """

    part: str
    case: str
    name: str
    seconds: float
    low: float
    high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    per_second: float | None = None
    unit: str = ""
    memory: int | None = None
    more: dict[str, float] = field(default_factory=dict)


def interleaved(
    functions: Functions, device: torch.device, rounds: int, budget: float
) -> dict[str, list[float]]:
    """Seconds per call of every function, round by round, after one call to warm up.

    The rounds are interleaved, so that whatever disturbs the machine disturbs all rows alike. A
    slow function takes part in fewer rounds, at least 2; a quick one is called many times in each.

    Args:
        functions: by name.
        device: waited for where it works on its own.
        rounds: how often.
        budget: seconds for one function in all its rounds.
    """
    calls, turns = {}, {}
    for name, function in functions.items():
        function()
        once = _seconds(function, device, 1)
        calls[name] = max(1, min(1000, int(0.005 / max(once, 1e-9))))
        turns[name] = max(2, min(rounds, int(budget / max(once, 1e-9))))
    found: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(max(turns.values())):
        for name, function in functions.items():
            if turn < turns[name]:
                found[name].append(_seconds(function, device, calls[name]))
    return found


def _seconds(function: Callable[[], object], device: torch.device, calls: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(
    part: str,
    case: str,
    name: str,
    times: list[float],
    reference: list[float] | None = None,
    count: float | None = None,
    unit: str = "",
    memory: int | None = None,
    more: Mapping[str, float] | None = None,
) -> Row:
    """The row of measured `times`.

    Args:
        part: see `Row`, as for the others not named here.
        case: likewise.
        name: likewise.
        times: seconds of every round.
        reference: the reference's seconds in the same rounds.
        count: what one call does, for `per_second`.
        unit: see `Row`.
        memory: see `Row`.
        more: see `Row`.
    """
    seconds = statistics.median(times)
    ratios = [own / other for own, other in zip(times, reference or (), strict=False)]
    return Row(
        part=part,
        case=case,
        name=name,
        seconds=seconds,
        low=min(times),
        high=max(times),
        ratio=statistics.median(ratios) if ratios else None,
        ratio_low=min(ratios, default=None),
        ratio_high=max(ratios, default=None),
        per_second=None if count is None else count / seconds,
        unit=unit,
        memory=memory,
        more=dict(more or {}),
    )


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch held at once during a call, beyond those it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        quiet_library(),
        # acc_events: without it torch 2.11 warns that it might forget events.
        torch.profiler.profile(
            activities=activities, profile_memory=True, acc_events=True
        ) as profile,
    ):
        function()
    held = peak = 0
    # The kernel events are in the order of their start; allocations and releases are among them.
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def quiet_library() -> Iterator[None]:
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
    times = interleaved(
        {"copy": lambda: target.copy_(source), "product": lambda: left @ right},
        device,
        rounds,
        budget=2.0,
    )
    return {
        "copy bytes/s": 2 * size / statistics.median(times["copy"]),
        "matrix FLOP/s": 2 * side**3 / statistics.median(times["product"]),
    }
