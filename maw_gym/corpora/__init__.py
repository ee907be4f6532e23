"""Collections of texts, queries and judgments, divided into the four splits."""

import logging
import os
from pathlib import Path
from typing import Any

from maw_gym.corpora.beir import read_beir_folder
from maw_gym.corpora.collection import (
    OWN,
    SMALL,
    Collection,
    QuerySet,
    Source,
    content_hash,
    without_own_documents,
)
from maw_gym.corpora.splits import FOLDS, divide, pooled
from maw_gym.corpora.text import encodable, normal
from maw_gym.errors import InputError, checked_int, shown

__all__ = ["Collection", "QuerySet", "is_pydocs", "load_collection"]

logger = logging.getLogger(__name__)
progress = logging.getLogger("maw_gym.progress")  # runners show it


def load_collection(name_or_path: str, fold: int = 0, folds: int | None = None) -> Collection:
    """A collection with its queries divided into splits; see `maw_gym.corpora.splits.divide`.

    Args:
        name_or_path: an ir_datasets id, `pydocs` among them; a folder in BEIR's layout; or a file
            of docstrings that the cache of another machine has.
        fold: which fold is test, of a collection that has no subsets or is cut into `folds`.
        folds: into how many all queries are cut, whatever their subsets; None keeps the subsets.

    Raises:
        InputError: there is no such collection, it cannot be read or has nothing to test on.
    """
    name = name_or_path
    if not isinstance(name, str):
        raise InputError(f"a dataset is named by a text, not by {shown(name)}")
    if encodable(name) != normal(name):
        raise InputError(f"the name {name!r} is not UTF-8; rename the folder")
    folds = None if folds is None else checked_int(folds, "folds", 2)
    fold = checked_int(fold, "fold", 0, (folds or FOLDS) - 1)
    source = _source(name)
    for what, count in source.provenance["dropped"].items():
        logger.warning("%s: dropped %d %s", name, count, what)
    if not any(part.ids for part in source.parts.values()):
        raise InputError(f"{name} has no query with a relevant document in the collection")
    parts = source.parts if folds is None else {"all": pooled(source.parts)}
    splits, notes = divide(parts, fold, folds, source.twins)
    if fold and "fold" not in notes:
        raise InputError(f"fold {fold} of {name}: it has a test subset; leave fold at 0")
    if not splits["test"].ids:
        raise InputError(f"{name} has too few queries: none is left for test fold {fold}")
    documents = source.documents
    splits = {split: without_own_documents(one, documents) for split, one in splits.items()}
    own = sum(OWN in grades.values() for part in splits.values() for grades in part.relevance)
    if own:
        logger.info("%s: %d queries are documents, left out of their rankings", name, own)
    provenance: dict[str, Any] = {
        "dataset": name,
        **source.provenance,
        "documents": len(documents),
        "queries": {split: len(queries.ids) for split, queries in splits.items()},
        "splits": notes,
        "content": content_hash(documents, splits),
    }
    texts = tuple(documents.values())
    collection = Collection(name, tuple(documents), texts, splits, provenance, source.groups)
    if not collection.small:
        line = "%s has %d documents, and %d or more are not ranked whole: BM25's first 100 are"
        progress.info(line, name, len(documents), SMALL)
    return collection


def _source(name: str) -> Source:
    path = os.path.expanduser(name)
    if name and os.path.isfile(os.path.join(path, "corpus.jsonl")):
        return read_beir_folder(Path(path))
    if name.startswith(("/", ".", "~")) and not os.path.isfile(path):
        raise InputError(
            f"{name} has no corpus.jsonl: give an ir_datasets id, or a folder with corpus.jsonl,"
            " queries.jsonl and qrels/test.tsv"
        )
    try:
        from maw_gym.corpora.irds import read_ir_dataset
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"ir_datasets cannot make its folder ({error}); set IR_DATASETS_HOME to one that can be"
            " written"
        ) from None
    return read_ir_dataset(name)


def is_pydocs(collection: Collection) -> bool:
    """Whether a collection was read from docstrings, and may share some with another such."""
    return "versions" in collection.provenance.get("collection", {})
