"""Collections in a folder of BEIR's layout (Thakur et al. 2021, arXiv:2104.08663).

corpus.jsonl has `_id`, `title` (optional) and `text` in each line, queries.jsonl `_id` and `text`,
both may have `metadata` with a `group`; qrels/train.tsv, dev.tsv and test.tsv have query id,
document id and a whole grade, after one line of headings or none.
"""

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from maw_gym.corpora.collection import Groups, Source, checked_grade, checked_id, judged_queries
from maw_gym.corpora.text import encodable
from maw_gym.errors import InputError, shown
from maw_gym.files import check_readable

logger = logging.getLogger(__name__)

PARTS: Final = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
KNOWN: Final = "train.tsv, dev.tsv and test.tsv"
HEADINGS: Final = ("query-id", "queryid", "qid", "q-id", "query", "topic", "topic-id", "topicid")


def read_beir_folder(folder: Path) -> Source:
    """Documents and judged queries of a folder."""
    documents, document_groups = _texts(folder / "corpus.jsonl", ("title", "text"))
    queries, query_groups = _texts(folder / "queries.jsonl", ("text",))
    files = _qrels_files(folder / "qrels")
    dropped: Counter[str] = Counter()
    parts = {}
    for part, path in files.items():
        grades = _judgments(path)
        # queries.jsonl holds the queries of all subsets: those not judged here are not missing.
        judged = {query_id for query_id, _ in grades}
        texts = ((query_id, text) for query_id, text in queries.items() if query_id in judged)
        judgments = ((*pair, grade) for pair, grade in grades.items())
        parts[part] = judged_queries(texts, judgments, documents, dropped)
        if not parts[part].ids:
            # Left out, another file would silently be taken for the test queries.
            raise InputError(
                f"{path} has no query with a relevant document in the collection; mend it or take"
                " it away"
            )
    provenance = {
        "source": "BEIR folder",
        "subsets": {part: f"qrels/{path.name}" for part, path in files.items()},
        "dropped": {what: count for what, count in dropped.items() if count},
    }
    return Source(documents, parts, provenance, Groups(query_groups, document_groups))


def _texts(path: Path, fields: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by id, the fields joined by a space; and the groups of those that name one."""
    texts: dict[str, str] = {}
    groups: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); mend or delete the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected an object with _id and text, got {shown(line)}")
        text_id = checked_id(record.get("_id"), f"{where}, _id")
        if text_id in texts:
            raise InputError(f"{where}: _id {text_id!r} was there before; make ids unique")
        # null is an empty text; 0 and [] are none.
        values = ["" if record.get(field) is None else record[field] for field in fields]
        if "text" not in record or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: {' and '.join(fields)} must be texts in {shown(line)}")
        texts[text_id] = encodable(" ".join(values).strip())
        metadata = record.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("group"), str):
            groups[text_id] = encodable(metadata["group"])
    if not texts:
        raise InputError(f"{path} is empty: it needs a line like {{'_id': '1', 'text': '...'}}")
    return texts, groups


def _qrels_files(folder: Path) -> dict[str, Path]:
    """The file of each part, or of `all` where there is a single one of another name.

    A file that may have been meant for a part that is missing is refused: without test.tsv the
    queries of dev.tsv are the test queries.
    """
    paths = {folder / f"{name}.tsv": part for name, part in PARTS.items()}
    files = {part: path for path, part in paths.items() if os.path.lexists(path)}
    others = {}
    for path in sorted(folder.glob("[!.]*")):
        stem, _, ending = path.name.lower().partition(".")
        if path not in files.values() and ("test" in stem or stem in PARTS or "tsv" in ending):
            others[path] = PARTS.get(stem)
    if not files and [(path.suffix, part) for path, part in others.items()] == [(".tsv", None)]:
        return {"all": next(iter(others))}
    for path, part in others.items():
        if (part or "test") not in files:
            raise InputError(
                f"{path} is none of {KNOWN}: name it one of these, unpacked, or take it away"
            )
        logger.warning("%s is not read: of judgments, only %s are", path, KNOWN)
    if not files:
        raise InputError(
            f"{folder} has none of {KNOWN}: put the judgments (query-id, corpus-id, score) in"
            " test.tsv"
        )
    return files


def _judgments(path: Path) -> dict[tuple[str, str], int]:
    """Grades by query id and document id."""
    grades: dict[tuple[str, str], int] = {}
    for number, (where, line) in enumerate(_lines(path)):
        try:
            cells = next(csv.reader([line.strip("\r\n")], delimiter="\t"))  # quoted as BEIR reads
        except csv.Error:  # carriage returns alone, a field without an end
            cells = []
        if len(cells) != 3:
            raise InputError(
                f"{where}: expected query id, document id and grade separated by tabs, got"
                f" {shown(line)}"
            )
        query_id, doc_id, given = (encodable(cell.strip()) for cell in cells)
        if number == 0 and query_id.lower().replace("_", "-").replace(" ", "-") in HEADINGS:
            continue
        grade = checked_grade(given, where)
        if grades.setdefault((query_id, doc_id), grade) != grade:
            raise InputError(
                f"{where}: document {doc_id!r} has two grades for query {query_id!r},"
                f" {grades[query_id, doc_id]} and {grade}; leave one"
            )
    return grades


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place for messages."""
    check_readable(path, "file of a collection")
    try:
        with path.open("rb") as file:
            about = f"reading {path.name}"
            lines = tqdm(file, about, unit="line", delay=2, leave=False, disable=None)
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                try:
                    text = line.decode("utf-8-sig")
                except UnicodeDecodeError:
                    text = "\0"
                if "\0" in text:  # as it stands in a text of UTF-16
                    encoding = "UTF-16" if b"\0" in line else "LATIN1"
                    raise InputError(
                        f"{where}: not UTF-8; save the file as UTF-8, such as by iconv -f"
                        f" {encoding} -t UTF-8"
                    )
                if text.strip():
                    yield where, text
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
