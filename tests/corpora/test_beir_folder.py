import json
import os

import pytest

from maw_gym.corpora import beir, load_collection
from maw_gym.corpora.beir import read_beir_folder
from maw_gym.corpora.collection import QuerySet
from maw_gym.errors import InputError

HEAD = "query-id\tcorpus-id\tscore\n"


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        lines(
            {"_id": "d1", "title": "Wings", "text": "of a plane", "metadata": {}},
            {"_id": "d2", "text": "jets"},
            {"_id": "d3", "title": "", "text": "\ud800 \u0001"},
            {"_id": 4, "title": "only a title", "text": None},
        )
    )
    (tmp_path / "queries.jsonl").write_text(
        lines(*({"_id": f"q{i}", "text": f"query {i}"} for i in range(6)))
    )
    (tmp_path / "qrels" / "train.tsv").write_text(HEAD + "q0\td1\t1\nq1\td2\t2\n")
    (tmp_path / "qrels" / "dev.tsv").write_text("q2\td1\t1\n\nq3\td2\t0\n")
    (tmp_path / "qrels" / "test.tsv").write_text(
        HEAD + "q4\td1\t1\r\nq4\td2\t-1\nq4\tgone\t1\nmissing\td1\t1\n"
    )
    return tmp_path


def test_documents_and_parts(folder):
    source = read_beir_folder(folder)
    assert source.doc_ids == ("d1", "d2", "d3", "4")
    assert source.doc_texts == ("Wings of a plane", "jets", "\ufffd \u0001", "only a title")
    assert source.parts == {
        "train": QuerySet(("q0", "q1"), ("query 0", "query 1"), ({"d1": 1}, {"d2": 2})),
        "validation": QuerySet(("q2",), ("query 2",), ({"d1": 1},)),
        "test": QuerySet(("q4",), ("query 4",), ({"d1": 1, "d2": 0},)),
    }
    assert source.provenance["dropped"] == {
        "judgments of missing documents": 1,
        "judgments of missing queries": 1,
        "queries without a relevant document": 1,
    }


def test_groups_are_those_that_the_metadata_name(folder):
    (folder / "queries.jsonl").write_text(
        lines(
            {"_id": "q4", "text": "query 4", "metadata": {"group": "left"}},
            {"_id": "q0", "text": "query 0", "metadata": {"group": 7}},
            {"_id": "q1", "text": "query 1", "metadata": "none"},
            {"_id": "q2", "text": "query 2"},
        )
    )
    (folder / "corpus.jsonl").write_text(
        lines(
            {"_id": "d1", "text": "x", "metadata": {"group": "right"}}, {"_id": "d2", "text": "y"}
        )
    )
    collection = load_collection(str(folder))
    assert collection.groups == ({"q4": "left"}, {"d1": "right"})
    assert collection.query_groups("test") == ("left",)
    assert collection.query_groups("train") == ("", "")


def test_load_collection(folder, caplog):
    collection = load_collection(str(folder))
    assert collection.name == str(folder)
    assert {split: found.ids for split, found in collection.splits.items()} == {
        "encoder": (),
        "train": ("q0", "q1"),
        "validation": ("q2",),
        "test": ("q4",),
    }
    assert collection.small
    assert collection.provenance["documents"] == 4
    assert collection.provenance["queries"] == {
        "encoder": 0,
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert len(collection.provenance["content"]) == 64
    json.dumps(collection.provenance)
    assert "dropped 1 judgments of missing documents" in caplog.text
    before = collection.provenance["content"]
    assert load_collection(str(folder)).provenance["content"] == before
    (folder / "qrels" / "test.tsv").write_text("q4\td1\t2\nq4\td2\t0\n")
    assert load_collection(str(folder)).provenance["content"] != before


def test_a_single_file_of_judgments_is_cut_into_folds(folder):
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (folder / "qrels" / name).unlink()
    (folder / "qrels" / "all.tsv").write_text("".join(f"q{i}\td1\t1\n" for i in range(6)))
    # In the order of their hash: 5 .066, 4 .289, 2 .448, 1 .450, 0 .523, 3 .827
    assert load_collection(str(folder), fold=0).splits["test"].ids == ("q3", "q5")
    assert load_collection(str(folder), fold=1).splits["test"].ids == ("q4",)


def expect(folder, *parts):
    with pytest.raises(InputError) as caught:
        load_collection(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("file", "line", "number", "parts"),
    [
        ("corpus.jsonl", b'{"_id": "d5", "text": ', 5, ["not JSON"]),
        ("corpus.jsonl", b'{"_id": "d5", "text": "\xff"}', 5, ["not JSON"]),
        ("corpus.jsonl", b"[1]", 5, ["[1]"]),
        ("corpus.jsonl", b'{"text": "x"}', 5, ["_id", "None"]),
        ("corpus.jsonl", b'{"_id": "a b", "text": "x"}', 5, ["_id", "'a b'"]),
        ("corpus.jsonl", b'{"_id": "d1", "text": "x"}', 5, ["'d1'", "unique"]),
        ("corpus.jsonl", b'{"_id": "d5"}', 5, ["text"]),
        ("corpus.jsonl", b'{"_id": "d5", "text": 3}', 5, ["text"]),
        ("corpus.jsonl", b'{"_id": "d5", "text": 0}', 5, ["title and text must be texts"]),
        ("corpus.jsonl", b'{"_id": "d5", "text": false}', 5, ["title and text must be texts"]),
        ("corpus.jsonl", b'{"_id": "d5", "title": [], "text": "x"}', 5, ["must be texts"]),
        ("corpus.jsonl", b'{"_id": "d5", "title": {}, "text": "x"}', 5, ["must be texts"]),
        ("corpus.jsonl", b'{"_id": "d\\u00005", "text": "x"}', 5, ["NUL character, got 'd\\x005'"]),
        ("queries.jsonl", b'{"_id": "q7", "text": 0.0}', 7, ["text must be texts"]),
        ("qrels/train.tsv", b"q0\td1\t1000001", 4, ["from -1000000 to 1000000, got '1000001'"]),
        ("qrels/train.tsv", b"q0\td1\t2147483647", 4, ["got '2147483647'"]),
        ("queries.jsonl", b'{"_id": "q1", "text": "x"}', 7, ["'q1'", "unique"]),
        ("queries.jsonl", b"x", 7, ["not JSON"]),
        ("qrels/train.tsv", b"q0\td1\t1.5", 4, ["integer", "'1.5'"]),
        ("qrels/train.tsv", b"q0\td1\tyes", 4, ["integer", "'yes'"]),
        ("qrels/train.tsv", b"q0 0 d1 1", 4, ["tabs"]),
        ("qrels/train.tsv", b"q0\td\xff\t1", 4, ["not UTF-8"]),
    ],
)
def test_a_bad_line_is_named(folder, file, line, number, parts):
    path = folder / file
    path.write_bytes(path.read_bytes() + line + b"\n")
    expect(folder, str(path), f"line {number}", *parts)


def test_missing_and_empty_files(folder):
    (folder / "corpus.jsonl").write_text("\n")
    expect(folder, str(folder / "corpus.jsonl"), "empty")
    (folder / "corpus.jsonl").write_text(lines({"_id": "d9", "text": "x"}))
    expect(folder, "no query with a relevant document")
    (folder / "queries.jsonl").unlink()
    expect(folder, str(folder / "queries.jsonl"), "No such file")
    (folder / "queries.jsonl").write_text(lines({"_id": "q0", "text": "x"}))
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (folder / "qrels" / name).unlink()
    expect(folder, str(folder / "qrels"), "test.tsv")
    (folder / "corpus.jsonl").unlink()
    expect(folder, "no corpus.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "test.tsv has no query with a relevant document in the collection"),
        (HEAD.encode(), "test.tsv has no query with a relevant document in the collection"),
        (b"q4\td1\t0\nq5\td1\t-1\n", "test.tsv has no query with a relevant document"),
        (b"q4\tgone\t1\n", "test.tsv has no query with a relevant document"),
        (HEAD.replace("\n", "\r").encode() + b"q4\td1\t1\r", "line 1: expected query id, document"),
    ],
    ids=["empty", "headings alone", "no grade above 0", "of other documents", "carriage returns"],
)
def test_judgments_that_read_as_none_are_no_reason_to_test_on_others(folder, content, message):
    (folder / "qrels" / "test.tsv").write_bytes(content)
    expect(folder, str(folder / "qrels" / "test.tsv"), message)


def test_a_folder_or_a_broken_link_in_place_of_judgments(folder):
    path = folder / "qrels" / "test.tsv"
    path.unlink()
    path.mkdir()
    expect(folder, f"{path} is not a regular file")
    path.rmdir()
    path.symlink_to("nowhere")
    expect(folder, f"{path} cannot be read: No such file")


@pytest.mark.parametrize("name", ["queries.jsonl", "qrels/dev.tsv"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    expect(folder, f"{folder / name} is not a regular file")


def test_a_line_without_end_is_not_read_whole(folder, monkeypatch):
    monkeypatch.setattr(beir, "LONGEST_LINE", 1000)
    with (folder / "corpus.jsonl").open("ab") as file:
        file.truncate(2**30)  # takes no room on the disk
    expect(folder, f"{folder / 'corpus.jsonl'}, line 5: longer than 1000 bytes")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("q\td\t1.0\n", {"d": 1}),
        ('"q"\t"d"\t"2"\n', {"d": 2}),
        ("q\td\t2\nq\td\t2\n", {"d": 2}),
        ("q\td\t2\nq\td\t0\n", "document 'd' has two grades for query 'q', 2 and 0; leave one"),
        ("q\td\t0.9\n", "the grade must be an integer, got '0.9'"),
    ],
)
def test_judgments_are_read_as_beir_reads_them_or_refused(tmp_path, lines, expected):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "bees"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "honey"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            read_beir_folder(tmp_path)
    else:
        assert read_beir_folder(tmp_path).parts["test"].relevance == (expected,)
