"""Collections of ir_datasets, by their id; and pydocs as one of them.

Importing this registers `pydocs` and its splits, such as `pydocs/test`; `pydocs:NAME` and files of
docstrings are entered when they are asked for. Nothing is read before a method asks for it.
"""

import contextlib
import difflib
import functools
import importlib.metadata
import logging
import os
import re
import tarfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import ir_datasets
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel
from ir_datasets.indices import DEFAULT_DOCSTORE_OPTIONS, Docstore
from ir_datasets.util import Download, LocalDownload, apply_sub_slice
from tqdm import tqdm

from maw_gym.corpora.collection import QuerySet, Source, checked_grade, checked_id, judged_queries
from maw_gym.corpora.pydocs import FILE, NAME, Pydocs, installed_pydocs
from maw_gym.corpora.splits import SPLITS
from maw_gym.corpora.text import encodable
from maw_gym.errors import InputError

HINT: Final = (
    "give an ir_datasets id, or a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, whose"
    " path, where it is relative, is taken from the current folder"
)
# Subsets `x/<name>` of a collection `x`, in the order in which they are looked for.
SUBSETS: Final = ("encoder", "train", "dev", "validation", "test")
NEEDED: Final = {"docs": "documents", "queries": "queries", "qrels": "judgments"}
# Three tries of 15 s for each mirror would keep a machine without a network waiting for minutes.
DOWNLOAD: Final = {"IR_DATASETS_DL_TRIES": "2", "IR_DATASETS_DL_TIMEOUT": "5"}
# What ir_datasets logs about its daily work. Terms of use and instructions are shown.
CHATTER: Final = (
    *("[starting]", "[finished]", "[error]", "Opening "),
    *("download error", "Download failed", "If you have a local copy"),
)


# --- reading ---------------------------------------------------------------------------------


def read_ir_dataset(name: str) -> Source:
    """Documents and judged queries of the dataset `name` and of its subsets."""
    if name.endswith(FILE):
        installed_pydocs.cache_clear()  # the file may have been written anew
    dataset = _registered(name)
    if dataset is None:
        # Ids are long paths: a file name alone should find them too.
        known = sorted(ir_datasets.registry)
        close = [other for other in known if other.split("/")[-1] == name]
        close = list(dict.fromkeys(close + difflib.get_close_matches(name, known, n=3)))[:3]
        question = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise InputError(f"unknown dataset {name!r}: {question}{HINT}")
    with _downloading(name):
        return _read(name, dataset)


def _registered(name: str) -> Any:
    try:
        return ir_datasets.load(name)
    except KeyError:
        return None


def _missing(dataset: Any) -> list[str]:
    return [what for kind, what in NEEDED.items() if dataset is None or not dataset.has(kind)]


def _read(name: str, dataset: Any) -> Source:
    subsets: dict[str, str] = {}
    for suffix in SUBSETS:
        part = "validation" if suffix == "dev" else suffix
        if part not in subsets and not _missing(_registered(f"{name}/{suffix}")):
            subsets[part] = f"{name}/{suffix}"
    if not subsets:
        if missing := _missing(dataset):
            below = [other for other in ir_datasets.registry if other.startswith(f"{name}/")]
            judged = [other for other in sorted(below) if not _missing(_registered(other))][:3]
            instead = f"try {' or '.join(map(repr, judged))}" if judged else HINT
            raise InputError(f"dataset {name!r} has no {' or '.join(missing)}: {instead}")
        subsets["test" if name.endswith("/test") else "all"] = name
    whole = dataset if dataset.has_docs() else _registered(next(iter(subsets.values())))

    dropped: Counter[str] = Counter()
    documents: dict[str, str] = {}
    docs, total = whole.docs_iter(), whole.docs_count()
    for doc in tqdm(docs, name, total, unit="doc", delay=2, leave=False, disable=None):
        doc_id = checked_id(doc.doc_id, f"a document of {name!r}")
        if doc_id in documents:
            dropped["documents with an id seen before"] += 1
        else:
            documents[doc_id] = encodable(_text(doc, titled=True))
    if not documents:
        raise InputError(f"dataset {name!r} has no document: {HINT}")
    parts = {part: _queries(subset, documents, dropped) for part, subset in subsets.items()}
    if "test" in parts and not parts["test"].ids:
        # Another subset would silently be taken for the test queries.
        raise InputError(
            f"dataset {subsets['test']!r} has no query with a relevant document among its documents"
        )
    provenance = {
        "source": "ir_datasets",
        "ir_datasets": importlib.metadata.version("ir_datasets"),
        "subsets": subsets,
        "dropped": {what: count for what, count in dropped.items() if count},
    }
    if not hasattr(whole, "pydocs"):
        return Source(documents, parts, provenance)
    pydocs: Pydocs = whole.pydocs()
    provenance["collection"] = pydocs.provenance
    return Source(documents, parts, provenance, pydocs.groups, pydocs.twins)


def _queries(name: str, documents: dict[str, str], dropped: Counter[str]) -> QuerySet:
    subset, query, judgment = _registered(name), f"a query of {name!r}", f"a judgment of {name!r}"
    queries = ((checked_id(one.query_id, query), _text(one)) for one in subset.queries_iter())
    judgments = (
        (
            checked_id(qrel.query_id, judgment),
            checked_id(qrel.doc_id, judgment),
            checked_grade(qrel.relevance, f"query {qrel.query_id!r} of {name!r}"),
        )
        for qrel in subset.qrels_iter()
    )
    return judged_queries(queries, judgments, documents, dropped)


def _text(record: Any, titled: bool = False) -> str:
    """`text` of a record, after a title where documents have one, or else its `default_text`."""
    text = getattr(record, "text", None)
    title = getattr(record, "title", None) if titled else None
    if isinstance(text, str) and isinstance(title, str | None):
        return f"{title or ''} {text}".strip() if titled else text
    default = record.default_text() if hasattr(record, "default_text") else None
    if isinstance(default, str):
        return default
    raise InputError(
        f"a {type(record).__name__} of the dataset has no text: give its class a field `text` or a"
        " method `default_text` that returns one"
    )


@contextlib.contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Fewer retries, unless the user set them, no chatter in the log, errors of one line."""
    ours = {variable: value for variable, value in DOWNLOAD.items() if variable not in os.environ}
    log = ir_datasets.log.easy().logger()

    def telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    os.environ.update(ours)
    log.addFilter(telling)
    try:
        yield
    except InputError:
        raise
    except (
        *(OSError, RuntimeError, ValueError, EOFError, AttributeError),
        *(zipfile.BadZipFile, tarfile.TarError),
    ) as e:
        raise InputError(f"dataset {name!r} {_reason(name, e)}") from e
    finally:
        log.removeFilter(telling)
        for variable in ours:
            os.environ.pop(variable, None)


def _reason(name: str, error: Exception) -> str:
    """Why a dataset cannot be read: which file it needs and where that could be put."""
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    downloads = [found for found in frames if isinstance(found, Download)]
    if not downloads:
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    file = downloads[-1]
    urls = [mirror.url for mirror in file.mirrors if hasattr(mirror, "url")]
    if urls:
        # Several mirrors: ir_datasets raises RuntimeError("All ...", [(mirror, error), ...]).
        tried = error.args[1] if len(error.args) == 2 else None
        cause = type(tried[-1][1] if isinstance(tried, list) else error).__name__
        wanted = f"{' or '.join(urls)}, which cannot be downloaded ({cause})"
    else:
        site = f"https://ir-datasets.com/{name.split('/')[0]}.html"
        wanted = f"a file that only its owner gives away, see {site}"
    local = [m.path(force=False) for m in file.mirrors if isinstance(m, LocalDownload)]
    place = file.path(force=False) if file._cache_path else next(iter(local), None)
    return f"needs {wanted}: {f'put it at {place}' if place else 'try again with a network'}"


# --- pydocs in the registry ------------------------------------------------------------------


class DocsIter:
    """Iterator over documents in memory that can be sliced, as all of ir_datasets' can be."""

    def __init__(self, docs: Sequence[GenericDoc]) -> None:
        self.docs, self.left = docs, iter(docs)

    def __iter__(self) -> Iterator[GenericDoc]:
        return self

    def __next__(self) -> GenericDoc:
        return next(self.left)

    def __getitem__(self, key: Any) -> "DocsIter | GenericDoc":
        if isinstance(key, slice):
            return DocsIter(self.docs[apply_sub_slice(slice(0, len(self.docs), 1), key)])
        return self.docs[key]


class PydocsStore(Docstore):
    """Look-up of documents by one of their fields."""

    def __init__(self, docs: Sequence[GenericDoc], field: str, options: Any) -> None:
        super().__init__(GenericDoc, field, options=options)
        self.docs = {getattr(doc, field): doc for doc in docs}

    def get_many_iter(self, doc_ids: Sequence[str]) -> Iterator[GenericDoc]:
        return (self.docs[doc_id] for doc_id in doc_ids if doc_id in self.docs)

    def count(self) -> int:
        return len(self.docs)


class PydocsDocs(BaseDocs):
    """The documents of the collection `name`, which all subsets share."""

    docs_lang = staticmethod(lambda: "en")
    docs_namespace = staticmethod(lambda: NAME)

    def __init__(self, name: str) -> None:
        self.name = name

    def pydocs(self) -> Pydocs:
        return installed_pydocs(self.name)

    def docs_iter(self) -> DocsIter:
        return DocsIter([GenericDoc(*doc) for doc in self.pydocs().docs.items()])

    def docs_store(
        self, field: str = "doc_id", options: Any = DEFAULT_DOCSTORE_OPTIONS
    ) -> PydocsStore:
        return PydocsStore(self.docs_iter().docs, field, options)

    def docs_count(self) -> int:
        return len(self.pydocs().docs)


class PydocsQueries(BaseQueries):
    """The queries of some splits."""

    queries_lang = staticmethod(lambda: "en")
    queries_namespace = staticmethod(lambda: NAME)

    def __init__(self, name: str, splits: Sequence[str]) -> None:
        self.name, self.splits = name, splits

    def queries_iter(self) -> Iterator[GenericQuery]:
        pydocs = installed_pydocs(self.name)
        sides = pydocs.sides
        return (GenericQuery(*q) for q in pydocs.queries.items() if sides[q[0]] in self.splits)

    def queries_count(self) -> int:
        return sum(1 for _ in self.queries_iter())


class PydocsQrels(BaseQrels):
    """The judgments of some queries."""

    qrels_cls = staticmethod(lambda: TrecQrel)
    qrels_defs = staticmethod(lambda: {1: "the rest of a docstring that begins with the query"})

    def __init__(self, of: PydocsQueries) -> None:
        self.of = of

    def qrels_iter(self) -> Iterator[TrecQrel]:
        relevance = installed_pydocs(self.of.name).relevance
        for query in self.of.queries_iter():
            for doc_id in relevance[query.query_id]:
                yield TrecQrel(query.query_id, doc_id, 1, "0")

    def qrels_count(self) -> int:
        return sum(1 for _ in self.qrels_iter())


_docs = functools.cache(PydocsDocs)  # the same object is how ir_datasets knows a parent


def _dataset(name: str, split: str | None = None) -> Dataset:
    queries = PydocsQueries(name, SPLITS if split is None else (split,))
    return Dataset(_docs(name), queries, PydocsQrels(queries))


def _register() -> None:
    if NAME not in ir_datasets.registry:
        ir_datasets.registry.register(NAME, _dataset(NAME))
        for split in SPLITS:
            ir_datasets.registry.register(f"{NAME}/{split}", _dataset(NAME, split))
    ir_datasets.registry.register_pattern(
        rf"^({NAME}:[^/]+|.+{re.escape(FILE)})(?:/({'|'.join(SPLITS)}))?$",
        lambda _, found: _dataset(*found),
    )


_register()
