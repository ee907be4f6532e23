"""Measure everything that is meant to be fast, each row beside what bounds it, in one process.

Attention: all depths' statistics with the 5D tensor, with depth_statistics, and the floor (depth
projections and torch's attention). Then depth tables, environment steps and training steps. With
--parts search also the search of up to a million documents, beside FAISS. A Markdown table of each
part goes to stdout and, with --out, all numbers to a JSON file.
"""

import os
import platform
import tempfile
from dataclasses import asdict
from typing import Annotated, ClassVar, Literal, get_args
from unittest.mock import patch

import torch
from pydantic import Field

from maw_gym.attention.reference import Inputs
from maw_gym.corpora import load_collection
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.text import padded
from maw_gym.files import write_json
from maw_gym.runners.benchmarks import attention, stack
from maw_gym.runners.benchmarks.measuring import Row, machine, tables
from maw_gym.runners.experiments.runs import run_main, writable_output
from maw_gym.settings import Coefficient, Count, HomePath, HomeText, checked
from maw_gym.tables.task import resolve_device

Part = Literal["attention", "table", "environment", "training", "search"]
PARTS: tuple[Part, ...] = get_args(Part)[:-1]  # search takes some ten minutes, and is asked for
SIZES = (1, 64, 1024, 8192)


@checked
class BenchmarkSettings:
    """What is measured, and how often."""

    main_flags: ClassVar = ("parts", "dataset", "rounds", "budget", "device", "out", "quick")
    parts: tuple[Part, ...] = PARTS
    """which of them; search indexes a million documents and is compared with FAISS"""
    dataset: HomeText = "pydocs"
    """whose queries make the ragged batch and the depth tables"""
    rounds: Count = 9
    """interleaved rounds of each row"""
    budget: Coefficient = 20.0
    """seconds that a slow row may take in all its rounds; at least two rounds are run"""
    timesteps: Count = 32_768
    """environment steps of each round of training"""
    num_envs: Annotated[Count, Field(multiple_of=8)] = 256
    """sub-environments in training"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    out: HomePath | None = None
    """JSON file of all numbers"""
    quick: bool = False
    """tiny shapes, few queries and two rounds: whether it runs, not how fast"""


@torch.no_grad()
def ragged_inputs(embedder: Embedder, texts: tuple[str, ...]) -> Inputs:
    """Queries as the encoder sees them."""
    ids = [row for row in embedder.query_ids(texts) if row]
    batch, mask = (tensor.to(embedder.device) for tensor in padded(ids))
    inputs = embedder.maw.depth_inputs(batch, embedder.text.hidden(batch), mask)
    return Inputs(*(tensor.detach() for tensor in inputs))


def measure(settings: BenchmarkSettings, device: torch.device) -> list[Row]:
    """All rows that the settings ask for."""
    quick, parts, budget = settings.quick, settings.parts, settings.budget
    rounds = 2 if quick else settings.rounds
    collection = load_collection(settings.dataset)
    embedder = untrained_embedder(collection.doc_texts).to(device)
    rows: list[Row] = []
    if "attention" in parts:
        shapes = attention.CUDA_SHAPES if device.type == "cuda" else attention.CPU_SHAPES
        problems = attention.cases(attention.QUICK_SHAPES if quick else shapes, device)
        texts = max((queries.texts for queries in collection.splits.values()), key=len)
        texts = texts[: 8 if quick else 64]
        problems[f"queries of {collection.name}"] = ragged_inputs(embedder, texts)
        for case, inputs in problems.items():
            rows += attention.attention_rows(case, inputs, rounds, budget)
    if {"table", "environment", "training"} & {*parts}:
        # An empty home, so that what is built is built.
        with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, MAW_GYM_HOME=home):
            if quick:
                few = {
                    name: one.select(range(min(25, len(one.ids))))
                    for name, one in collection.splits.items()
                }
                collection = collection._replace(splits=few)
            found, table = stack.table_rows(collection, embedder, device)
            if "table" in parts:
                rows += found
            if "environment" in parts:
                rows += stack.environment_rows(table, SIZES[:2] if quick else SIZES, rounds)
            if "training" in parts:
                steps = 64 if quick else settings.timesteps
                rows += stack.training_rows(table, settings.num_envs, steps, min(rounds, 5), device)
    if "search" in parts and quick:
        rows += stack.size_rows((500, 1000), 50, str(device))
        rows += stack.faiss_rows(1000, 50, rounds=rounds)
    elif "search" in parts:
        rows += stack.size_rows(device=str(device)) + stack.faiss_rows(rounds=min(rounds, 3))
    return rows


def main(settings: BenchmarkSettings) -> None:
    """Measure, print, write."""
    out = settings.out and writable_output(settings.out)
    device = resolve_device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    name += f", {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    ceilings = machine(device, 2 if settings.quick else settings.rounds)
    rows = measure(settings, device)
    copies, products = (value / 1e9 for value in ceilings.values())
    print(f"{name}: copies {copies:,.0f} GB/s, matrix products {products:,.0f} GFLOP/s\n")
    print(tables(rows))
    if out is not None:
        content = {
            "device": name,
            "machine": ceilings,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "settings": asdict(settings),
            "rows": [asdict(row) for row in rows],
        }
        write_json(out, content)


if __name__ == "__main__":
    run_main(BenchmarkSettings, main)
