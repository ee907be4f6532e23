"""Collections in a folder of BEIR's layout (Thakur et al. 2021, arXiv:2104.08663).

corpus.jsonl has `_id`, `title` (optional) and `text` in each line, queries.jsonl `_id` and `text`,
both may have `metadata` with a `group`;
qrels/train.tsv, dev.tsv and test.tsv have query id, document id and an integer grade, after one
line of headings or none.
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

from maw_gym.corpora.collection import (
    LARGEST_GRADE,
    Groups,
    Source,
    check_id,
    encodable,
    judged_queries,
)
from maw_gym.errors import InputError
from maw_gym.files import check_readable

logger = logging.getLogger(__name__)

PARTS: Final = {
    "train.tsv": "train",
    "dev.tsv": "validation",
    "validation.tsv": "validation",
    "test.tsv": "test",
}
LONGEST_LINE: Final = 2**28  # bytes; a document of that length is a mistake
HEADINGS: Final = ("query-id", "query_id", "queryid", "qid", "query")


def read_beir_folder(folder: Path) -> Source:
    """Documents and judged queries of a folder."""
    documents, document_groups = _texts(folder / "corpus.jsonl", ("title", "text"))
    queries, query_groups = _texts(folder / "queries.jsonl", ("text",))
    dropped: Counter[str] = Counter()
    parts = {}
    files = _qrels_files(folder)
    for part, path in files.items():
        judgments = list(_judgments(path))
        grades: dict[tuple[str, str], int] = {}
        for query_id, doc_id, grade in judgments:
            if grades.setdefault((query_id, doc_id), grade) != grade:
                raise InputError(
                    f"{path}: document {doc_id!r} has two grades for query {query_id!r},"
                    f" {grades[query_id, doc_id]} and {grade}; leave one"
                )
        # queries.jsonl holds the queries of all subsets: those not judged here are not missing.
        judged = {query_id for query_id, _, _ in judgments}
        texts = ((query_id, text) for query_id, text in queries.items() if query_id in judged)
        parts[part] = judged_queries(texts, judgments, documents, dropped)
        if not parts[part].ids:
            # Left out, another file would silently be taken for the test queries.
            raise InputError(
                f"{path} has no query with a relevant document in the collection; mend it or take"
                " it away"
            )
    provenance: dict[str, Any] = {
        "source": "BEIR folder",
        "subsets": {part: f"qrels/{path.name}" for part, path in files.items()},
        "dropped": {what: count for what, count in dropped.items() if count},
    }
    groups = Groups(query_groups, document_groups)
    return Source(tuple(documents), tuple(documents.values()), parts, provenance, groups)


def _texts(path: Path, fields: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by id, the fields joined by a space; and the groups of those that name one."""
    texts: dict[str, str] = {}
    groups: dict[str, str] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); mend or delete the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected an object with _id and text, got {line[:60]!r}")
        text_id = record.get("_id")
        if isinstance(text_id, int) and not isinstance(text_id, bool):
            text_id = str(text_id)
        # A TREC run file, which results are written to, separates its fields by white space.
        if not isinstance(text_id, str) or not text_id or text_id.split() != [text_id]:
            raise InputError(
                f"{where}: _id must be a text without white space, got {record.get('_id')!r}"
            )
        text_id = check_id(encodable(text_id), f"{where},")
        if text_id in texts:
            raise InputError(f"{where}: _id {text_id!r} was there before; make ids unique")
        # null is an empty text; 0 and [] are none.
        given = [record.get(field) for field in fields]
        values = ["" if value is None else value for value in given]
        if "text" not in record or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: {' and '.join(fields)} must be texts in {line[:60]!r}")
        texts[text_id] = encodable(" ".join(values).strip())
        metadata = record.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("group"), str):
            groups[text_id] = encodable(metadata["group"])
    if not texts:
        raise InputError(f"{path} is empty: it needs a line like {{'_id': '1', 'text': '...'}}")
    return texts, groups


def _qrels_files(folder: Path) -> dict[str, Path]:
    files = {
        part: folder / "qrels" / name
        for name, part in reversed(PARTS.items())
        if os.path.lexists(folder / "qrels" / name)
    }
    if files:
        return files
    others = sorted((folder / "qrels").glob("*.tsv"))
    if len(others) == 1:
        return {"all": others[0]}
    raise InputError(
        f"{folder / 'qrels'} has neither train.tsv, dev.tsv nor test.tsv: put the judgments"
        " (query-id, corpus-id, score) in test.tsv"
    )


def _judgments(path: Path) -> Iterator[tuple[str, str, int]]:
    for number, line in _lines(path):
        try:
            text = line.decode("utf-8-sig").strip("\r\n")
            cells = next(csv.reader([text], delimiter="\t"), [])  # quoted as BEIR reads it
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 ({error.reason})") from None
        except csv.Error:  # carriage returns alone, a field without an end
            cells = []
        if len(cells) != 3:
            raise InputError(
                f"{path}, line {number}: expected query id, document id and grade separated by"
                f" tabs, got {line[:60]!r}"
            )
        if number == 1 and cells[0].strip().lower() in HEADINGS:
            continue
        query_id, doc_id, grade = (cell.strip() for cell in cells)
        try:
            given = float(grade)
            value = int(given)
            if value != given:
                raise ValueError
        except OverflowError:  # of a number that floats do not hold
            value = LARGEST_GRADE + 1
        except ValueError:
            raise InputError(
                f"{path}, line {number}: the grade must be an integer, got {grade[:60]!r}"
            ) from None
        if abs(value) > LARGEST_GRADE:
            raise InputError(
                f"{path}, line {number}: the grade must be from -{LARGEST_GRADE} to"
                f" {LARGEST_GRADE}, got {grade[:60]!r}"
            )
        yield query_id, doc_id, value


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and bytes of the lines that are not blank."""
    if not path.exists():
        raise InputError(f"{path} cannot be read: No such file")
    check_readable(path, "file of a collection")
    try:
        with path.open("rb") as file:
            stream = iter(lambda: file.readline(LONGEST_LINE), b"")
            lines = tqdm(
                stream, f"reading {path.name}", unit="line", delay=2, leave=False, disable=None
            )
            for number, line in enumerate(lines, 1):
                if len(line) == LONGEST_LINE:
                    raise InputError(f"{path}, line {number}: longer than {LONGEST_LINE} bytes")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
