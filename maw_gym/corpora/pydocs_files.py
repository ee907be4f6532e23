"""Files of the pydocs cache: JSON in the kind of file that maw_gym writes, under its checksum."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from maw_gym import files
from maw_gym.corpora.splits import SPLITS
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import cached

logger = logging.getLogger(__name__)

KIND: Final = "pydocs"


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a cache file, made first where it is not there or is damaged.

    Where nothing can be written it is made all the same.
    """
    made: list[dict[str, Any]] = []

    def build() -> dict[str, Any]:
        made.append(make())
        return made[0]

    try:
        return cached(path, build, write_content, read_content)
    except InputError as problem:
        logger.warning("pydocs is not cached: %s", problem)
        return made[0] if made else make()


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `read_content` reads."""
    # Bytes of a tensor: the settings of a file have a limit that large collections exceed.
    data = json.dumps(content, separators=(",", ":")).encode()
    files.write(path, {"json": torch.from_numpy(np.frombuffer(data, np.uint8).copy())}, KIND, {})


def read_content(path: Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        DamagedFileError: it is damaged, or has something else in it.
        InputError: it cannot be read, or is no file of the pydocs cache.
    """
    tensors = files.read(path, KIND).tensors
    try:
        content: Any = json.loads(bytes(tensors["json"].numpy()))
    except (KeyError, TypeError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} has no JSON object in it; give another {KIND} file")
    return content


def check_pydocs(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what is no collection; others may have made the file.

    Raises:
        InputError: it lacks something, or has something of another kind.
    """
    try:
        docs = [(str.encode(doc_id), str.encode(text))[0] for doc_id, text in content["docs"]]
        known, ids = set(docs), set()
        for query_id, text, split, relevant in content["queries"]:
            ids.add((str.encode(query_id), str.encode(text))[0])
            if split not in SPLITS or not relevant or not known >= set(map(str.encode, relevant)):
                raise ValueError(f"query {query_id[:60]!r} has no documents or no split")
        for package, version in content["provenance"]["versions"].items():
            str.encode(package), str.encode(version)
        if len(known) != len(docs) or len(ids) != len(content["queries"]):
            raise ValueError("an id is given twice")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a pydocs collection ({type(error).__name__}: {error}); give another"
        ) from None
