import json

import pytest
from mistakes import refused

from maw_gym.corpora import load_collection
from maw_gym.corpora.beir import read_beir_folder
from maw_gym.corpora.collection import QuerySet

HEAD = "query-id\tcorpus-id\tscore\n"
PARTS = ("train.tsv", "dev.tsv", "test.tsv")


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        lines(
            {"_id": "d1", "title": "Wings", "text": "of a plane", "metadata": {"group": "right"}},
            {"_id": "d2", "text": "jets", "metadata": {"group": 7}},
            {"_id": "d3", "title": "", "text": "\ud800 \u0001"},
            {"_id": 4, "title": "only a title", "text": None},
        )
    )
    (tmp_path / "queries.jsonl").write_text(
        lines(
            *({"_id": f"q{row}", "text": f"query {row}"} for row in (0, 1, 3, 5)),
            {"_id": "q2", "text": "query 2", "metadata": "none"},
            {"_id": "q4", "text": "query 4", "metadata": {"group": "left"}},
        )
    )
    (tmp_path / "qrels" / "train.tsv").write_text(HEAD + "q0\td1\t1\nq1\td2\t2\n")
    (tmp_path / "qrels" / "dev.tsv").write_text("q2\td1\t1\n\nq3\td2\t0\n")
    (tmp_path / "qrels" / "test.tsv").write_text(
        HEAD + "q4\td1\t1\r\nq4\td2\t-1\nq4\tgone\t1\nmissing\td1\t1\n"
    )
    return tmp_path


def content(folder):
    return load_collection(str(folder)).provenance["content"]


def test_documents_splits_and_the_hash_of_the_content(folder, caplog):
    collection = load_collection(str(folder))
    texts = ("Wings of a plane", "jets", "\ufffd \u0001", "only a title")
    assert (collection.doc_ids, collection.doc_texts) == (("d1", "d2", "d3", "4"), texts)
    assert collection.splits == {
        "encoder": QuerySet((), (), ()),
        "train": QuerySet(("q0", "q1"), ("query 0", "query 1"), ({"d1": 1}, {"d2": 2})),
        "validation": QuerySet(("q2",), ("query 2",), ({"d1": 1},)),
        "test": QuerySet(("q4",), ("query 4",), ({"d1": 1, "d2": 0},)),
    }
    assert collection.name == str(folder)
    assert collection.groups == ({"q4": "left"}, {"d1": "right"})
    groups = {split: collection.query_groups(split) for split in ("test", "train")}
    assert groups == {"test": ("left",), "train": ("", "")}
    told = collection.provenance
    assert told["dropped"] == {
        "judgments of missing documents": 1,
        "judgments of missing queries": 1,
        "queries without a relevant document": 1,
    }
    assert (told["documents"], told["queries"]["train"], told["queries"]["test"]) == (4, 2, 1)
    json.dumps(told)
    assert "dropped 1 judgments of missing documents" in caplog.text
    (folder / "link").symlink_to(folder)
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):  # a byte order mark
        (folder / file).write_text((folder / file).read_text(), "utf-8-sig")
    assert content(folder / "link") == told["content"]
    (folder / "qrels" / "test.tsv").write_text("q4\td1\t2\nq4\td2\t0\n")
    assert content(folder) != told["content"]


def test_a_single_file_of_judgments_is_cut_into_folds(folder):
    for name in PARTS:
        (folder / "qrels" / name).unlink()
    (folder / "qrels" / "all.tsv").write_text("".join(f"q{i}\td1\t1\n" for i in range(6)))
    # In the order of their hash: 5 .066, 4 .289, 2 .448, 1 .450, 0 .523, 3 .827
    assert load_collection(str(folder), fold=0).splits["test"].ids == ("q3", "q5")
    assert load_collection(str(folder), fold=1).splits["test"].ids == ("q4",)
    (folder / "qrels" / "more.tsv").write_text("q0\td1\t1\n")
    refused(folder, folder / "qrels" / "all.tsv", "is none of train.tsv, dev.tsv and test.tsv")


NOT_UTF8 = "not UTF-8; save the file as UTF-8, such as by iconv -f"


@pytest.mark.parametrize(
    ("file", "line", "number", "parts"),
    [
        ("corpus.jsonl", b'{"_id": "d5", "text": ', 5, ["not JSON"]),
        ("corpus.jsonl", b'{"_id": "d5", "text": "caf\xe9"}', 5, [f"{NOT_UTF8} LATIN1"]),
        ("corpus.jsonl", b"[1]", 5, ["[1]"]),
        ("corpus.jsonl", b'{"text": "x"}', 5, ["_id", "None"]),
        ("corpus.jsonl", b'{"_id": "a b", "text": "x"}', 5, ["_id", "'a b'"]),
        ("corpus.jsonl", b'{"_id": "d1", "text": "x"}', 5, ["'d1'", "unique"]),
        ("corpus.jsonl", b'{"_id": "d5"}', 5, ["text"]),
        ("corpus.jsonl", b'{"_id": "d5", "text": false}', 5, ["title and text must be texts"]),
        ("corpus.jsonl", b'{"_id": "d5", "title": [], "text": "x"}', 5, ["must be texts"]),
        ("corpus.jsonl", b'{"_id": "d\\u00005", "text": "x"}', 5, ["NUL, got 'd\\x005'"]),
        ("queries.jsonl", b'{"_id": "q7", "text": 0.0}', 7, ["text must be texts"]),
        ("queries.jsonl", b'{"_id": "q1", "text": "x"}', 7, ["'q1'", "unique"]),
        ("queries.jsonl", b"[" * 100_000, 7, ["not JSON"]),
        ("qrels/train.tsv", b"q0\td1\t" + b"9" * 400, 4, ["to 1000000, got '9999"]),
        ("qrels/train.tsv", b"q0\td1\t0.9", 4, ["a grade must be a whole number", "'0.9'"]),
        ("qrels/train.tsv", b"q0\td1\t0", 4, ["'d1' has two grades for query 'q0', 1 and 0"]),
        ("qrels/train.tsv", b"q0 0 d1 1", 4, ["tabs"]),
        ("qrels/train.tsv", b"q0\td1\t1\rq1\td1\t1", 4, ["expected query id, document"]),
        ("qrels/train.tsv", b"q0\td\xff\t1", 4, [NOT_UTF8]),
    ],
)
def test_a_bad_line_is_named(folder, file, line, number, parts):
    path = folder / file
    path.write_bytes(path.read_bytes() + line + b"\n")
    refused(folder, f"{path}, line {number}", *parts)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_files_of_utf_16_are_refused_at_once(folder, file, encoding):
    path = folder / file
    path.write_text(path.read_text(), encoding)
    refused(folder, f"{path}, line 1: {NOT_UTF8} UTF-16 -t UTF-8")


@pytest.mark.parametrize(
    "judgments",
    [
        "q4\td1\t1\n",
        "q4\td1\t1.0\n",
        "q4\td1\t1\nq4\td1\t1\n",
        "query_id\tdoc_id\trelevance\nq4\td1\t1\n",
        "Query ID\tdocument\tlabel\nq4\td1\t1\n",
        '\n"topic"\t"doc"\t"grade"\nq4\td1\t1\n',
        '"q4"\t"The_""B""_Side"\t"1"\n',  # as csv writes quotation marks
    ],
)
def test_usual_ways_to_write_judgments(folder, judgments):
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(lines({"_id": 'The_"B"_Side', "text": "x"}))
    (folder / "qrels" / "test.tsv").write_text(judgments)
    (grades,) = read_beir_folder(folder).parts["test"].relevance
    assert grades == ({'The_"B"_Side': 1} if "Side" in judgments else {"d1": 1})


@pytest.mark.parametrize(
    "name", ["Test.tsv", "TEST.TSV", "test.tsv.gz", "test.txt", "qrels_test.tsv", "heldout.tsv"]
)
def test_what_may_be_test_judgments_under_another_name_is_refused(folder, name):
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / name)
    (folder / "qrels" / "README.md").write_text("About")
    refused(folder, folder / "qrels" / name, "name it one of these, unpacked, or take it away")
    for other in ("train.tsv", "dev.tsv"):
        (folder / "qrels" / other).unlink()
    if name not in ("qrels_test.tsv", "heldout.tsv"):  # a single file of another name is cut
        refused(folder, folder / "qrels" / name)


def test_other_judgments_beside_the_right_ones_are_named(folder, caplog):
    before = content(folder)
    caplog.clear()
    for name in ("test.tsv.gz", "hard.tsv", "validation.tsv"):
        (folder / "qrels" / name).write_text("")
    assert content(folder) == before
    told = [message.split(" ")[0] for message in caplog.messages if "is not read" in message]
    names = ("hard.tsv", "test.tsv.gz", "validation.tsv")
    assert told == [f"{folder}/qrels/{name}" for name in names]


def test_missing_and_empty_files(folder):
    (folder / "corpus.jsonl").write_text("\n")
    refused(folder, folder / "corpus.jsonl", "empty")
    (folder / "corpus.jsonl").write_text(lines({"_id": "d9", "text": "x"}))
    refused(folder, "no query with a relevant document")
    (folder / "queries.jsonl").unlink()
    refused(folder, folder / "queries.jsonl", "no file of a collection")
    (folder / "queries.jsonl").write_text(lines({"_id": "q0", "text": "x"}))
    for name in PARTS:
        (folder / "qrels" / name).unlink()
    refused(folder, folder / "qrels", "put the judgments (query-id, corpus-id, score) in test.tsv")
    (folder / "corpus.jsonl").unlink()
    refused(folder, "no corpus.jsonl")


@pytest.mark.parametrize("content", ["", HEAD, "q4\td1\t0\nq5\td1\t-1\n", "q4\tgone\t1\n", None])
def test_judgments_that_read_as_none_are_no_reason_to_test_on_others(folder, content):
    path = folder / "qrels" / "test.tsv"
    if content is None:
        path.unlink()
        path.symlink_to("nowhere")
        refused(folder, path, "no file of a collection")
    else:
        path.write_text(content)
        refused(folder, path, "has no query with a relevant document in the collection")
