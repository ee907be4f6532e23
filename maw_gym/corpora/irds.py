"""Collections from ir_datasets, by their id; pydocs is among them."""

import contextlib
import difflib
import importlib.metadata
import itertools
import logging
import os
import tarfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from tqdm import tqdm

from maw_gym.corpora.collection import (
    NO_GROUPS,
    Groups,
    QuerySet,
    Source,
    check_id,
    encodable,
    judged_queries,
)
from maw_gym.errors import InputError

# Subsets `x/<name>` of a collection `x`, in the order in which they are looked for.
SUBSETS: Final = {
    "encoder": "encoder",
    "train": "train",
    "dev": "validation",
    "validation": "validation",
    "test": "test",
}
HINT: Final = (
    "give an ir_datasets id, or a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv"
)
# Three tries of 15 s for each mirror would keep a machine without a network waiting for minutes.
DOWNLOAD: Final = {"IR_DATASETS_DL_TRIES": "2", "IR_DATASETS_DL_TIMEOUT": "5"}
# What ir_datasets logs about its daily work. Terms of use and instructions are shown.
CHATTER: Final = (
    *("[starting]", "[finished]", "[error]", "Opening "),
    *("download error", "Download failed", "If you have a local copy"),
)


def registry() -> Any:
    """The module ir_datasets, in which pydocs is registered."""
    try:
        import ir_datasets

        from maw_gym.corpora.pydocs_dataset import register
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"ir_datasets cannot make its folder ({error}); set IR_DATASETS_HOME to one that can be"
            " written"
        ) from None
    register()
    return ir_datasets


def read_ir_dataset(name: str) -> Source:
    """Documents and judged queries of the dataset `name` and of its subsets."""
    dataset = _registered(name)
    if dataset is None:
        # Ids are long paths: a file name alone should find them too.
        known = sorted(registry().registry)
        close = [other for other in known if other.split("/")[-1] == name]
        close += difflib.get_close_matches(name, known, n=3)
        close = list(dict.fromkeys(close))[:3]
        question = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise InputError(f"unknown dataset {name!r}: {question}{HINT}")
    with _one_line_errors(name), _quiet_downloads():
        return _read(name, dataset)


def _read(name: str, dataset: Any) -> Source:
    subsets: dict[str, tuple[str, Any]] = {}
    for suffix, part in SUBSETS.items():
        subset = _registered(f"{name}/{suffix}")
        if subset is not None and part not in subsets and not _lacks(subset):
            subsets[part] = f"{name}/{suffix}", subset
    if not subsets:
        if lacks := _lacks(dataset):
            below = [other for other in registry().registry if other.startswith(f"{name}/")]
            judged = [other for other in sorted(below) if not _lacks(_registered(other))][:3]
            instead = f"try {' or '.join(map(repr, judged))}" if judged else HINT
            raise InputError(f"dataset {name!r} has no {' or '.join(lacks)}: {instead}")
        subsets["test" if name.endswith("/test") else "all"] = name, dataset
    whole = dataset if dataset.has_docs() else next(iter(subsets.values()))[1]

    dropped: Counter[str] = Counter()
    documents: dict[str, str] = {}
    stream = iter(whole.docs_iter())
    # Downloads happen before the first document, and show progress bars of their own.
    first = list(itertools.islice(stream, 1))
    stream = itertools.chain(first, stream)
    with tqdm(
        stream, name, whole.docs_count(), unit="doc", delay=2, leave=False, disable=None
    ) as docs:
        for doc in docs:
            doc_id = check_id(_id(doc.doc_id), f"a document of {name!r}")
            if doc_id in documents:
                dropped["documents with an id seen before"] += 1
            else:
                documents[doc_id] = encodable(document_text(doc))
    if not documents:
        raise InputError(f"dataset {name!r} has no document: {HINT}")
    provenance: dict[str, Any] = {
        "source": "ir_datasets",
        "ir_datasets": importlib.metadata.version("ir_datasets"),
        "subsets": {part: subset_id for part, (subset_id, _) in subsets.items()},
    }
    if hasattr(whole, "provenance"):
        provenance["collection"] = whole.provenance()
    parts = {part: _queries(subset, documents, dropped) for part, (_, subset) in subsets.items()}
    if "test" in parts and not parts["test"].ids:
        # Another subset would silently be taken for the test queries.
        raise InputError(
            f"dataset {subsets['test'][0]!r} has no query with a relevant document among its"
            " documents"
        )
    provenance["dropped"] = {what: count for what, count in dropped.items() if count}
    groups = NO_GROUPS
    if hasattr(whole, "group_of"):
        names = [name for part in parts.values() for name in part.ids]
        groups = Groups(
            {name: whole.group_of(name) for name in names},
            {name: whole.group_of(name) for name in documents},
        )
    twins = getattr(whole, "twins", None)
    return Source(tuple(documents), tuple(documents.values()), parts, provenance, groups, twins)


def _queries(subset: Any, documents: dict[str, str], dropped: Counter[str]) -> QuerySet:
    queries = ((_id(query.query_id), _query_text(query)) for query in subset.queries_iter())
    judgments = (
        (_id(qrel.query_id), _id(qrel.doc_id), _grade(qrel.relevance))
        for qrel in subset.qrels_iter()
    )
    return judged_queries(queries, judgments, documents, dropped)


def document_text(doc: Any) -> str:
    """Title, a space and text of an ir_datasets document, or else its `default_text`."""
    text, title = getattr(doc, "text", None), getattr(doc, "title", "")
    if isinstance(text, str) and isinstance(title, str):
        return f"{title} {text}".strip()
    return _default_text(doc)


def _query_text(query: Any) -> str:
    text = getattr(query, "text", None)
    return text if isinstance(text, str) else _default_text(query)


def _default_text(record: Any) -> str:
    text = record.default_text() if hasattr(record, "default_text") else None
    if not isinstance(text, str):
        raise InputError(
            f"a {type(record).__name__} of the dataset has no text: give its class a field `text`"
            " or a method `default_text` that returns one"
        )
    return text


def _id(given: Any) -> str:
    """An id as a text; whole numbers are taken for theirs."""
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str):
        raise InputError(f"an id of the dataset must be a text, got {given!r}")
    return encodable(given)


def _grade(given: Any) -> int:
    try:
        if int(given) == float(given):
            return int(given)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"a grade of the dataset must be a whole number, got {given!r}")


def _registered(name: str) -> Any:
    try:
        return registry().load(name)
    except KeyError:
        return None


def _lacks(dataset: Any) -> list[str]:
    has = {
        "documents": dataset.has_docs(),
        "queries": dataset.has_queries(),
        "judgments": dataset.has_qrels(),
    }
    return [what for what, there in has.items() if not there]


@contextlib.contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Fewer retries, unless the user set them, and no chatter in the log."""
    ours = {name: value for name, value in DOWNLOAD.items() if name not in os.environ}
    log = registry().log.easy().logger()

    def telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    os.environ.update(ours)
    log.addFilter(telling)
    try:
        yield
    finally:
        log.removeFilter(telling)
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn what ir_datasets raises about its files into an InputError that says what to do."""
    from ir_datasets.util import LocalDownload

    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError) as e:
        download = _failed_download(e)
        if download is None:
            reason = " ".join(str(e).split()) or type(e).__name__
            raise InputError(f"dataset {name!r} cannot be read: {reason}") from e
        urls = [mirror.url for mirror in download.mirrors if hasattr(mirror, "url")]
        local = [m.path(force=False) for m in download.mirrors if isinstance(m, LocalDownload)]
        place = download.path(force=False) if download._cache_path else next(iter(local), None)
        put = f"put it at {place}" if place else "try again with a network"
        if urls:
            # Several mirrors: ir_datasets raises RuntimeError("All ...", [(mirror, error), ...]).
            cause = e.args[1][-1][1] if len(e.args) == 2 and isinstance(e.args[1], list) else e
            wanted = f"{' or '.join(urls)}, which cannot be downloaded ({type(cause).__name__})"
        else:
            site = f"https://ir-datasets.com/{name.split('/')[0]}.html"
            wanted = f"a file that only its owner gives away, see {site}"
        raise InputError(f"dataset {name!r} needs {wanted}: {put}") from e


def _failed_download(error: BaseException) -> Any:
    """The ir_datasets `Download` that was under way where `error` was raised, or None."""
    from ir_datasets.util import Download

    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), Download):
            found = frame.f_locals["self"]
    return found
