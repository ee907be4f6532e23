"""Depth tables on disk: one checksummed safetensors file, memory-mapped on reading.

A table is built in chunks of rows, each a file of its own: an interrupted build goes on behind the
chunks that are whole. Only a complete table gets its name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym import files
from maw_gym.distributed import own, wait
from maw_gym.errors import DamagedFileError
from maw_gym.files import (
    cached,
    check_tensors,
    content_key,
    loaded,
)
from maw_gym.tables.columns import COLUMNS, PER_DEPTH
from maw_gym.tables.depth_table import DepthTable

CHUNK = 1024  # rows built and written at once, and the least that a process gets
KIND = "table"
ROWS = "table rows"

Builder = Callable[[slice], Mapping[str, NDArray[np.float32]]]


def load_or_build(
    path: Path, query_ids: Sequence[str], widths: Mapping[str, int], build: Builder
) -> DepthTable:
    """The table at `path`, built first where it is not there or is damaged.

    Args:
        path: the file; its name must hold a key of everything `build` depends on.
        query_ids: N ids, in order.
        widths: the width of each column, see `DepthTable`.
        build: rows of the split -> the columns of these rows.

    Several processes may call this at once: one builds and the others wait. Those that torchrun
    has started (`maw_gym.distributed`) build a share of the rows each.
    """

    def read(path: Path) -> DepthTable:
        table = read_table(path)
        found = {name: getattr(table, name).shape[1] for name in COLUMNS}
        if table.query_ids != tuple(query_ids) or found != dict(widths):
            raise DamagedFileError(f"{path} is another table than its name says")
        return table

    of = content_key({"query_ids": list(query_ids), "widths": dict(widths)})
    folder = path.with_suffix(".rows")
    starts = range(0, len(query_ids), CHUNK)
    portions = [slice(start, min(start + CHUNK, len(query_ids))) for start in starts]

    def share() -> list[dict[str, Tensor]]:
        for rows in own(portions):
            _chunk(folder, of, rows, build)
        wait()
        chunks = [_chunk(folder, of, rows, build) for rows in portions]
        wait()
        return chunks

    def join(path: Path, chunks: list[dict[str, Tensor]]) -> None:
        _join(path, query_ids, widths, chunks)
        rmtree(folder, ignore_errors=True)

    return cached(path, share, join, read, together=True)


def read_table(path: Path) -> DepthTable:
    """The table at `path`; its columns are read-only memory maps.

    Raises:
        DamagedFileError: the content is not that of a depth table.
        InputError: there is no such file, or it cannot be read.
    """
    tensors = files.read(path, KIND).tensors
    try:
        ids = tuple(json.loads(tensors.pop("query_ids").numpy().tobytes()))
        depths = tensors["entropy"].shape[1]
        if not all(isinstance(name, str) for name in ids):
            raise ValueError("ids that are no texts")
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a depth table ({error}); delete it") from None
    widths = {name: depths * PER_DEPTH[name] if name in PER_DEPTH else None for name in COLUMNS}
    check_tensors(path, tensors, {name: (len(ids), width) for name, width in widths.items()})
    columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    for column in columns.values():
        column.flags.writeable = False
    return DepthTable(ids, **columns)


def _chunk(folder: Path, of: str, rows: slice, build: Builder) -> dict[str, Tensor]:
    """The columns of some rows of the table `of`, from their file, built first if need be."""
    settings = {"of": of, "rows": [rows.start, rows.stop]}
    file = folder / f"{rows.start:012d}.safetensors"

    def read(file: Path) -> dict[str, Tensor]:
        found = files.read(file, ROWS)
        if found.settings != settings:
            raise DamagedFileError(f"{file} has rows of another table")
        return found.tensors

    chunk = loaded(file, read)
    if chunk is None:
        columns = build(rows)
        chunk = {name: torch.from_numpy(np.ascontiguousarray(columns[name])) for name in COLUMNS}
        files.write(file, chunk, ROWS, settings)
    return chunk


def _join(
    path: Path,
    query_ids: Sequence[str],
    widths: Mapping[str, int],
    chunks: Sequence[Mapping[str, Tensor]],
) -> None:
    """Write the table of all chunks."""
    ids = np.frombuffer(json.dumps(list(query_ids)).encode(), np.uint8).copy()
    tensors = {
        name: torch.cat([torch.zeros(0, widths[name]), *(chunk[name] for chunk in chunks)])
        for name in COLUMNS
    }
    files.write(path, tensors | {"query_ids": torch.from_numpy(ids)}, KIND, {})
