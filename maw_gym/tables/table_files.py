"""Depth tables on disk: one safetensors file, filled in chunks, memory-mapped on reading.

The file has its final size and header from the start and is written under a temporary name, beside
which a small JSON file counts the finished rows. An interrupted build goes on from there; only a
complete table gets its name, and the checksum of its numbers, by which damage is noticed.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maw_gym.errors import InputError
from maw_gym.files.cache import one_builder, written_whole
from maw_gym.tables.columns import COLUMNS, PER_DEPTH
from maw_gym.tables.depth_table import DepthTable

CHUNK = 4096  # rows built, written and counted at once
UNKNOWN = "00000000"  # the checksum of an unfinished table

Columns = dict[str, NDArray[Any]]
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

    Several processes may call this at once: one builds and the others wait.
    """
    shapes = {name: (len(query_ids), widths[name]) for name in COLUMNS}
    ids = json.dumps(list(query_ids)).encode()
    with one_builder(path):
        if path.exists():
            try:
                table = read_table(path)
                if _fits(table, query_ids, widths):
                    return table
            except InputError:
                pass
            path.unlink()
        partial = path.with_name(path.name + ".partial")
        progress = path.with_name(path.name + ".progress")
        done = _finished_rows(partial, progress, ids, shapes)
        if done == 0:
            # First of all: rows counted for another file are not in the new one.
            progress.unlink(missing_ok=True)
            _allocate(partial, ids, shapes)
        columns = _map(partial, "r+")
        columns["query_ids"][:] = np.frombuffer(ids, np.uint8)
        for start in range(done, len(query_ids), CHUNK):
            rows = slice(start, min(start + CHUNK, len(query_ids)))
            for name, values in build(rows).items():
                columns[name][rows] = values
            _flush(columns)
            with written_whole(progress) as temporary:
                temporary.write_text(json.dumps({"rows": rows.stop}))
        _flush(columns)
        _write_checksum(partial)
        partial.replace(path)
        progress.unlink(missing_ok=True)
        return read_table(path)


def read_table(path: Path) -> DepthTable:
    """The table at `path`; its columns are read-only memory maps.

    Raises:
        InputError: the file is damaged or not a depth table.
    """
    try:
        columns = _map(path, "r")
        _check_checksum(path)
        ids = tuple(json.loads(columns.pop("query_ids").tobytes()))
        if set(columns) != set(COLUMNS) or not all(isinstance(name, str) for name in ids):
            raise ValueError("other columns than a depth table has")
        depths = columns["entropy"].shape[1:]
        for name, column in columns.items():
            if column.ndim != 2 or len(column) != len(ids) or column.dtype != np.float32:
                raise ValueError(f"column {name} has shape {column.shape} for {len(ids)} queries")
            if name in PER_DEPTH and column.shape[1:] != depths:
                raise ValueError(f"column {name} has not the depths of entropy")
    except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a depth table ({error}); delete it") from None
    return DepthTable(ids, **columns)


def _finished_rows(
    partial: Path, progress: Path, ids: bytes, shapes: Mapping[str, tuple[int, int]]
) -> int:
    """Rows that an interrupted build of the very same table has already written."""
    try:
        rows = int(json.loads(progress.read_text())["rows"])
        header = _header(ids, shapes)
        with partial.open("rb") as file:
            found = file.read(len(header))
            at = header.index(UNKNOWN.encode())
            # Of a build interrupted at its very end the checksum is there already.
            same = found[:at] + UNKNOWN.encode() + found[at + len(UNKNOWN) :] == header
        expected = len(header) + len(ids) + 4 * sum(map(math.prod, shapes.values()))
        if same and partial.stat().st_size == expected and 0 <= rows <= shapes["entropy"][0]:
            return rows
    except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        pass
    return 0


def _fits(table: DepthTable, query_ids: Sequence[str], widths: Mapping[str, int]) -> bool:
    """Whether a table read from disk is the one wanted; a file changed by hand may be another."""
    found = {name: getattr(table, name).shape[1] for name in COLUMNS}
    return table.query_ids == tuple(query_ids) and found == dict(widths)


def _header(ids: bytes, shapes: Mapping[str, tuple[int, int]]) -> bytes:
    """The 8 bytes of length and the JSON that open a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"crc32": UNKNOWN}}
    offset = 0
    # The widest type first keeps every column aligned.
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    header["query_ids"] = {
        "dtype": "U8",
        "shape": [len(ids)],
        "data_offsets": [offset, offset + len(ids)],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _allocate(path: Path, ids: bytes, shapes: Mapping[str, tuple[int, int]]) -> None:
    header = _header(ids, shapes)
    size = len(header) + len(ids) + 4 * sum(math.prod(shape) for shape in shapes.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        # Reserved, not sparse: a full disk is noticed here and not as a bus error in the map.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _map(path: Path, mode: Any) -> Columns:
    """Memory maps of a safetensors file's tensors, after checking its header against its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError(f"header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header is not a JSON object")
    columns: Columns = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype: np.dtype[Any] = np.dtype({"F32": "<f4", "U8": "u1"}[entry["dtype"]])
        shape = tuple(int(n) for n in entry["shape"])
        start, stop = entry["data_offsets"]
        fits = 0 <= start <= stop <= size - 8 - length and min(shape, default=1) >= 0
        if not fits or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"column {name} does not fit into the file")
        if stop == start:  # an empty map is refused by the system
            columns[name] = np.empty(shape, dtype)
        else:
            columns[name] = np.memmap(path, dtype, mode, 8 + length + start, shape)
    return columns


def _checksum(path: Path) -> tuple[bytes, int]:
    """The 8 hex digits of the CRC-32 of everything behind the header, and the header's length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(length, os.SEEK_CUR)
        found = 0
        while block := file.read(1 << 22):
            found = zlib.crc32(block, found)
    return b"%08x" % found, length


def _write_checksum(path: Path) -> None:
    found, length = _checksum(path)
    with path.open("r+b") as file:
        at = file.read(8 + length).index(b'"crc32": "') + len(b'"crc32": "')
        file.seek(at)
        file.write(found)
        file.flush()
        os.fsync(file.fileno())


def _check_checksum(path: Path) -> None:
    found, length = _checksum(path)
    with path.open("rb") as file:
        header = json.loads(file.read(8 + length)[8:])
    # Tables that others have written may have none.
    metadata = header.get("__metadata__")
    told = metadata.get("crc32") if isinstance(metadata, dict) else None
    if told is not None and str(told).encode() != found:
        raise ValueError(f"checksum {found.decode()} of its numbers, not {told}")


def _flush(columns: Columns) -> None:
    for column in columns.values():
        if isinstance(column, np.memmap):
            column.flush()
