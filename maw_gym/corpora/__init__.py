"""Collections of texts, queries and judgments, divided into the four splits."""

import logging
import os
from pathlib import Path
from typing import Any

from maw_gym.corpora.beir import read_beir_folder
from maw_gym.corpora.collection import (
    OWN,
    Collection,
    QuerySet,
    content_hash,
    without_own_documents,
)
from maw_gym.corpora.irds import HINT, read_ir_dataset, registry
from maw_gym.corpora.splits import FOLDS, divide, pooled
from maw_gym.errors import InputError, checked_int, shown

__all__ = ["Collection", "QuerySet", "is_pydocs", "load_collection"]

PYDOCS_FILE = ".safetensors"

logger = logging.getLogger(__name__)


def load_collection(name_or_path: str, fold: int = 0, folds: int | None = None) -> Collection:
    """A collection with its queries divided into splits; see `maw_gym.corpora.splits.divide`."""
    if not isinstance(name_or_path, str):
        raise InputError(f"a dataset is named by a text, not by {shown(name_or_path)}")
    if folds is not None:
        folds = checked_int(folds, "folds", 2)
    fold = checked_int(fold, "fold", 0, (folds or FOLDS) - 1)
    folder = os.path.expanduser(name_or_path)
    if folder.endswith(PYDOCS_FILE) and os.path.isfile(folder):
        registry()  # refuses what importing the next would stumble over
        from maw_gym.corpora.pydocs import pydocs_from_file, source_of

        source = source_of(pydocs_from_file(Path(folder)))
    elif name_or_path and os.path.isfile(os.path.join(folder, "corpus.jsonl")):
        source = read_beir_folder(Path(folder))
    elif name_or_path.startswith(("/", ".", "~")):
        raise InputError(f"{name_or_path} has no corpus.jsonl: {HINT}")
    else:
        source = read_ir_dataset(name_or_path)
    for what, count in source.provenance["dropped"].items():
        logger.warning("%s: dropped %d %s", name_or_path, count, what)
    if not any(part.ids for part in source.parts.values()):
        raise InputError(f"{name_or_path} has no query with a relevant document in the collection")
    parts, twins = source.parts, None
    if folds is not None:
        parts = {"all": pooled(parts)}
        twins = source.twins and source.twins()
    splits, notes = divide(parts, fold, folds, twins)
    if fold and "fold" not in notes:
        raise InputError(f"fold {fold} of {name_or_path}: it has a test subset; leave fold at 0")
    if not splits["test"].ids:
        raise InputError(f"{name_or_path} has too few queries: none is left for test fold {fold}")
    splits = {
        split: without_own_documents(queries, source.doc_ids, source.doc_texts)
        for split, queries in splits.items()
    }
    own = sum(OWN in grades.values() for part in splits.values() for grades in part.relevance)
    if own:
        logger.info("%s: %d queries are documents, left out of their rankings", name_or_path, own)
    provenance: dict[str, Any] = {
        "dataset": name_or_path,
        **source.provenance,
        "documents": len(source.doc_ids),
        "queries": {split: len(queries.ids) for split, queries in splits.items()},
        "splits": notes,
        "content": content_hash(source.doc_ids, source.doc_texts, splits),
    }
    return Collection(
        name_or_path, source.doc_ids, source.doc_texts, splits, provenance, source.groups
    )


def is_pydocs(collection: Collection) -> bool:
    """Whether a collection was read from docstrings, and may share some with another such."""
    return "versions" in collection.provenance.get("collection", {})
