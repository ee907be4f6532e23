"""Where the time goes inside a stage, by operator: torch's profiler, once warm."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from maw_gym.corpora import Collection
from maw_gym.encoders.documents import document_embeddings
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.training.attention_stage import batch_loss
from maw_gym.encoders.training.depth_stage import depth_loss, judged_queries
from maw_gym.encoders.training.pairs import pairs_of
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.retrieval.ranking import alignment_of_depths
from maw_gym.tables.task import RetrievalTask
from runners.benchmarks.measuring import Row, quiet_library, row, synchronize
from runners.benchmarks.stack import empty_cache

QUERIES = 512  # of the stages that are profiled: one batch of training
SHOWN = 8  # operators by name; the rest is one row


def profile_rows(collection: Collection, embedder: Embedder, device: torch.device) -> list[Row]:
    """Operators of building a depth table, and of loss and gradients in either stage of training.

    A row's ratio is its share of the stage's time. On CUDA the rows are the GPU's kernels. The last
    row is the time in which none of them ran: Python's and that of launches.
    """
    rows = []
    with empty_cache():
        for case, function in _stages(collection, embedder, device).items():
            function()
            rows += _operators(case, function, device)
    return rows


def _stages(
    collection: Collection, embedder: Embedder, device: torch.device
) -> dict[str, Callable[[], object]]:
    split = max(collection.splits.values(), key=lambda queries: len(queries.ids))
    task = RetrievalTask(collection, embedder, device)
    ids = embedder.query_ids(split.texts[:QUERIES])
    relevant = task.index.relevant(split)[:QUERIES]

    def table() -> None:
        for rows, statistics, _ in embedder.query_statistics(ids):
            alignment_of_depths(
                task.index, statistics.embeddings, [relevant[row] for row in rows.tolist()]
            )

    stages: dict[str, Callable[[], object]] = {f"depth table, {len(ids)} queries": table}
    pairs = pairs_of([collection], embedder)
    chosen = torch.arange(min(QUERIES, len(pairs.queries)))
    if len(chosen):
        settings = TrainingSettings()
        documents = [pairs.relevant[row][0] for row in chosen.tolist()]
        depths = chosen % embedder.maw.depths
        queries = [embedder.text.cut(row, settings.query_tokens) for row in pairs.queries]
        ranked = document_embeddings(collection, embedder)
        judged, generator = judged_queries(queries, ranked, pairs), torch.Generator()

        def attention() -> None:
            batch_loss(embedder, pairs, chosen, documents, settings).backward()
            embedder.encoder.zero_grad(set_to_none=True)

        def depth() -> None:
            rows = chosen.tolist()
            loss = depth_loss(embedder, judged, rows, depths, settings, generator)
            projections = embedder.maw.depth_query_proj.weight, embedder.maw.depth_key_proj.weight
            torch.autograd.grad(loss, projections)

        stages[f"attention, step of {len(chosen)}"] = attention
        stages[f"depths, step of {len(chosen)}"] = depth
    return stages


def _operators(case: str, function: Callable[[], object], device: torch.device) -> list[Row]:
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with (
        quiet_library(),
        torch.profiler.profile(activities=activities, acc_events=True) as profile,
    ):
        function()
        synchronize(device)
    wanted = "CUDA" if cuda else "CPU"
    events: list[Any] = [one for one in profile.key_averages() if one.device_type.name == wanted]
    times = {
        one.key: (one.self_device_time_total if cuda else one.self_cpu_time_total) / 1e6
        for one in events
    }
    calls = {one.key: one.count for one in events}
    whole = profile.profiler.kineto_results
    span = (whole.trace_start_ns(), max(one.end_ns() for one in whole.events()))
    return shares(case, times, calls, (span[1] - span[0]) / 1e9, "kernel" if cuda else "operator")


def shares(
    case: str, times: Mapping[str, float], calls: Mapping[str, int], seconds: float, what: str
) -> list[Row]:
    """The operators that take longest, all others together, and the time in which none ran.

    Args:
        case: see `Row`.
        times: seconds of each operator.
        calls: of each operator.
        seconds: of the whole stage; operators may run side by side and take longer together.
        what: they are, "operator" or "kernel".
    """
    total = max(seconds, sum(times.values()))
    largest = sorted(times, key=times.__getitem__, reverse=True)[:SHOWN]
    rows = [
        row("profile", case, name[:60], [times[name]], [total], more={"calls": calls[name]})
        for name in largest
    ]
    rest = sum(times.values()) - sum(times[name] for name in largest)
    rows.append(row("profile", case, "other operators", [rest], [total]))
    rows.append(row("profile", case, f"no {what}", [total - sum(times.values())], [total]))
    return rows
