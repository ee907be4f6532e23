"""The files of a search index: ids, vectors that are mapped, and what belongs together.

index.json is written last and names every other file with its checksum: a folder without it was not
written whole. Nothing in these files is run.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files.cache import canonical, synced, written_whole
from maw_gym.files.tensor_files import check_readable
from maw_gym.threads import ThreadAside

FORMAT: Final = 1
ABOUT: Final = "index.json"
IDS: Final = "documents.jsonl"  # one id a line
VECTORS: Final = "vectors.npy"
WORDS: Final = "words.safetensors"  # BM25
FAISS: Final = "approximate.faiss"
LARGEST_ABOUT: Final = 1_000_000  # bytes of index.json


class About(NamedTuple):
    """What index.json says.

    Attributes:
        encoder: fingerprint of the encoder that made the vectors.
        kind: "exact", or "faiss:" and a factory string.
        files: names of the other files.
    """

    encoder: str
    kind: str
    files: tuple[str, ...]


def write_ids(path: Path, doc_ids: Iterable[str]) -> None:
    """Write ids, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        encode = json.JSONEncoder().encode  # json.dumps looks at its options every time
        file.writelines(f"{encode(doc_id)}\n" for doc_id in doc_ids)


def read_ids(path: Path) -> list[str]:
    """The ids that `write_ids` has written.

    Raises:
        DamagedFileError: it holds something else.
    """
    try:
        with path.open(newline="") as file:
            doc_ids = [json.loads(line) for line in file]
    except (OSError, ValueError, RecursionError) as problem:
        raise DamagedFileError(f"{path} is not readable: {problem}") from None
    if not all(isinstance(doc_id, str) for doc_id in doc_ids):
        raise DamagedFileError(f"{path} holds ids that are no strings")
    return doc_ids


def write_vectors(
    path: Path, parts: Sequence[Tensor], first: NDArray[np.int64], thread: ThreadAside
) -> Future[str]:
    """Write the vectors of all parts one behind the other, that of a copy being its first's.

    Args:
        path: of the file, which can be mapped when this returns.
        parts: (n, h) each.
        first: (N,) of each vector the first that it is to equal.
        thread: sees to the checksum, and that the file is on the disk.

    Returns:
        What gives the file's sha256 (hex) when both are done.
    """
    digest = hashlib.sha256()
    starts = np.cumsum([0, *map(len, parts)])
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(parts[0][:0].cpu().numpy().dtype),
        "fortran_order": False,
        "shape": (int(starts[-1]), parts[0].shape[1]),
    }
    opening = io.BytesIO()
    np.lib.format.write_array_header_1_0(opening, header)
    digest.update(opening.getvalue())
    with written_whole(path, sync=False) as temporary, temporary.open("wb") as file:
        file.write(opening.getvalue())
        for start, part in zip(starts, parts, strict=False):
            rows = np.arange(start, start + len(part))
            copies = np.flatnonzero(first[rows] != rows)
            values = part.cpu().numpy()
            if len(copies):
                values = values.copy()
                for copy in copies:
                    source = first[start + copy]
                    at = int(np.searchsorted(starts, source, "right")) - 1
                    values[copy] = parts[at][source - starts[at]].cpu().numpy()
            thread.submit(digest.update, values.data.cast("B"))
            file.write(values.data)
    return thread.submit(_settled, path, digest.hexdigest)


def _settled(path: Path, checksum: Callable[[], str]) -> str:
    synced(path)
    return checksum()


def mapped_vectors(path: Path) -> Tensor:
    """The vectors of a file, copied where they are written to."""
    try:
        vectors = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as problem:
        raise DamagedFileError(f"{path} is not readable: {problem}") from None
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
        raise DamagedFileError(f"{path} holds {vectors.dtype} of shape {vectors.shape}, no vectors")
    return torch.from_numpy(vectors)


def write_about(
    folder: Path, encoder: str, kind: str, files: Sequence[str], known: Mapping[str, Future[str]]
) -> None:
    """Write index.json: the folder is whole from now on.

    Args:
        folder: of the index.
        encoder: see `About`.
        kind: see `About`.
        files: see `About`.
        known: give the checksums of some of the files, once these are on the disk.
    """
    about = {
        "format": FORMAT,
        "encoder": encoder,
        "index": kind,
        "sha256": {
            name: known[name].result() if name in known else _sha256(folder / name)
            for name in files
        },
    }
    with written_whole(folder / ABOUT) as temporary:
        temporary.write_text(canonical(about))


def read_about(folder: Path) -> About:
    """What index.json says, after the other files have been compared with it.

    Raises:
        DamagedFileError: a file is not what was written.
        InputError: a file is missing.
    """
    path = folder / ABOUT
    if not path.exists():
        raise InputError(f"no index in {str(folder)!r}; save one there first")
    check_readable(path, "index.json of an index", LARGEST_ABOUT)
    try:
        content = json.loads(path.read_text())
        about = About(content["encoder"], content["index"], tuple(content["sha256"]))
        checksums = list(content["sha256"].values())
        whole = (
            content["format"] == FORMAT
            and {IDS, VECTORS} <= set(about.files) <= {IDS, VECTORS, WORDS, FAISS}
            and all(isinstance(text, str) for text in (*about[:2], *checksums))
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise DamagedFileError(f"{path} is not readable: {problem}") from None
    if not whole:
        raise DamagedFileError(f"{path} was not written by this version of maw_gym")
    for name, written in zip(about.files, checksums, strict=True):
        check_readable(folder / name, "file of an index")
        if _sha256(folder / name) != written:
            raise DamagedFileError(f"{folder / name} is damaged: its checksum is another")
    return about


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
