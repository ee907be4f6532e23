"""Hidden states of a frozen transformer on disk: computed once, then memory-mapped.

Two files: ``<key>.npy`` holds the states of all tokens (T, h) in float16, text after text, and
``<key>.json`` says whose they are. The second is written last. A computation that was stopped goes
on after the batches that ``<key>.progress`` counts.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from maw_gym.encoders.text.protocol import length_batches, padded
from maw_gym.encoders.text.transformer import Transformer
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import cache_home, cached, content_key, fingerprint, written_whole

log = logging.getLogger(__name__)

FORMAT: Final = 1  # raise when the meaning of a file changes
BATCH_TOKENS: Final = 8192  # padded tokens computed at once
SAVED_TOKENS: Final = 65_536  # so many tokens at most are lost where a computation is stopped
LARGEST: Final = 2**34  # bytes; states that would take more are computed whenever they are needed

Ids = Sequence[Sequence[int]]


class _TooLarge(Exception):
    """States that would take too much of the disk."""


class StoredStates:
    """Hidden states of a set of texts, computed at the first look at one of them.

    Args:
        text: the transformer, frozen.
        about: JSON values that say which texts these are; equal ones share a file.
        ids: gives the token ids of all texts; called only where the file is not there.
        device: where states are computed; devices round differently.
        label: of the progress bar.
    """

    def __init__(
        self,
        text: Transformer,
        about: Mapping[str, Any],
        ids: Callable[[], Ids],
        device: torch.device,
        label: str,
    ) -> None:
        self.text = text.knowing()
        self.about = dict(about)
        self.ids = ids
        self.device = device
        self.label = label
        self._states = np.empty((0, text.width), np.float16)
        self._texts: dict[bytes, tuple[int, int]] | None = None  # first token and their number

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.float16] | None:
        """States (n, h) of a text's n token ids, or None where the text is not in the file."""
        known = self._opened().get(_digest(ids))
        return None if known is None else self._states[known[0] : known[0] + known[1]]

    def _opened(self) -> dict[bytes, tuple[int, int]]:
        """First token and number of tokens of each text in the file, which is made if need be."""
        if self._texts is not None:
            return self._texts
        key = content_key(
            {
                "format": FORMAT,
                "text": self.text.name,
                "weights": fingerprint(self.text.own_weights()),
                "device": self.device.type,
                "about": self.about,
            }
        )
        path = cache_home() / "states" / f"{key}.json"
        first = 0
        self._texts = {}
        for digest, length in self._cached(path):
            self._texts[digest] = (first, length)
            first += length
        return self._texts

    def _cached(self, path: Path) -> list[tuple[bytes, int]]:
        try:
            return cached(path, lambda: self._build(path), lambda *_: None, self._read)
        except _TooLarge:
            return []

    def _read(self, path: Path) -> list[tuple[bytes, int]]:
        """Digest and length of each text whose states are in the file beside `path`.

        Raises:
            DamagedFileError: one of the two files is not what was written.
        """
        try:
            kept = json.loads(path.read_text())
            texts = [(bytes.fromhex(digest), int(length)) for digest, length in kept["texts"]]
            total = sum(length for _, length in texts)
            states = _mapped(path.with_suffix(".npy"), total, self.text.width)
            if _checksum(states) != kept["crc32"]:
                raise ValueError("another checksum than its numbers have")
        except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{path} does not hold hidden states ({error})") from None
        self._states = states
        return texts

    def _build(self, path: Path) -> None:
        different = {_digest(row): row for row in self.ids() if len(row)}
        rows = sorted(different.values(), key=len)
        texts = [(_digest(row), len(row)) for row in rows]
        starts = np.cumsum([0, *(length for _, length in texts)]).tolist()
        size = 2 * starts[-1] * self.text.width
        if size > min(LARGEST, shutil.disk_usage(path.parent).free / 2):
            log.info("%s would take %d MB and are not kept", self.label, size >> 20)
            raise _TooLarge
        numbers, progress = path.with_suffix(".npy"), path.with_suffix(".progress")
        content = content_key({"texts": [digest.hex() for digest, _ in texts]})
        done = saved = self._finished(numbers, progress, content, starts[-1])
        if done == 0:
            progress.unlink(missing_ok=True)  # it counts the tokens of another file
            _allocate(numbers, starts[-1], self.text.width)
        states = _mapped(numbers, starts[-1], self.text.width, "r+")
        with tqdm(
            total=starts[-1],
            desc=self.label,
            unit="token",
            unit_scale=True,
            delay=2,
            leave=False,
            disable=None,
        ) as bar:
            bar.update(done)
            for batch in length_batches([length for _, length in texts], BATCH_TOKENS):
                first, last = starts[batch[0]], starts[batch[-1] + 1]
                if last <= done:
                    continue
                states[first:last] = self._computed([rows[row] for row in batch])
                bar.update(last - first)
                if last - saved >= SAVED_TOKENS:
                    states.flush()
                    with written_whole(progress) as temporary:
                        temporary.write_text(json.dumps({"texts": content, "tokens": last}))
                    saved = last
        states.flush()
        kept = {"texts": [(digest.hex(), length) for digest, length in texts]}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps({**kept, "crc32": _checksum(states)}))
        progress.unlink(missing_ok=True)

    def _finished(self, numbers: Path, progress: Path, content: str, total: int) -> int:
        """Tokens that a stopped computation of the very same states has written."""
        try:
            kept = json.loads(progress.read_text())
            _mapped(numbers, total, self.text.width)
            if kept["texts"] == content and 0 <= int(kept["tokens"]) <= total:
                return int(kept["tokens"])
        except (KeyError, OSError, TypeError, ValueError):
            pass
        return 0

    @torch.no_grad()
    def _computed(self, rows: Ids) -> NDArray[np.float16]:
        """States (tokens, h) of texts, one after the other."""
        ids, mask = padded(rows, self.device)
        return self.text.hidden(ids, mask)[mask].half().cpu().numpy()


def _digest(ids: Sequence[int] | NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


def _allocate(path: Path, tokens: int, width: int) -> None:
    try:
        np.lib.format.open_memmap(path, "w+", np.float16, (max(tokens, 1), width)).flush()
        # Reserved, not sparse: a full disk is noticed here and not as a bus error in the map.
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; make room for it or set MAW_GYM_HOME to"
            " another folder"
        ) from None


def _mapped(path: Path, tokens: int, width: int, mode: Any = "r") -> np.memmap[Any, Any]:
    """Memory map of states (tokens, width); an empty map is refused, so it has one row at least.

    Raises:
        ValueError: the file holds something else.
    """
    states = np.lib.format.open_memmap(path, mode)
    if states.dtype != np.float16 or states.shape != (max(tokens, 1), width):
        raise ValueError(f"{states.dtype} of shape {states.shape}")
    return states


def _checksum(states: NDArray[np.float16]) -> int:
    found = 0
    for rows in np.array_split(states, max(1, len(states) // SAVED_TOKENS)):
        found = zlib.crc32(np.ascontiguousarray(rows).data, found)
    return found
