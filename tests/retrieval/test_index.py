import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.baselines import fixed_router
from maw_gym.encoders import document_parts
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.retrieval import index as index_module
from maw_gym.retrieval.index import ABOUT, VECTORS, SearchIndex
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.task import RetrievalTask

QUERIES = ["how bees make honey", "polar ice melting", "nothing of that kind", ""]


@pytest.fixture
def routed(task: RetrievalTask) -> RoutedEncoder:
    return RoutedEncoder(task.embedder, fixed_router(task, 1))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_parts, "PART", 7)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stream_in_parts_on_disk_is_searched_as_lists_in_memory(
    task: RetrievalTask, routed: RoutedEncoder, tmp_path: Path, dtype: str
) -> None:
    # Two texts come again, in other parts and other batches.
    ids = [*task.collection.doc_ids, "again", "once more"]
    texts = [*task.collection.doc_texts, task.collection.doc_texts[3], task.collection.doc_texts[0]]
    expected = routed.index(ids, texts, dtype=dtype).search(QUERIES, 32)
    fused = routed.search(QUERIES, 32, hybrid=True)
    routed.index(iter(ids), iter(texts), dtype=dtype, folder=tmp_path / "index")
    assert routed.search(QUERIES, 32) == expected
    assert routed.search(QUERIES, 32, hybrid=True) == fused
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        "documents.jsonl", "index.json", "vectors.npy", "words.safetensors",
    ]  # fmt: skip
    stored = np.load(tmp_path / "index" / "vectors.npy")
    assert stored.dtype == dtype
    assert stored.shape == (32, 256)
    loaded = SearchIndex.load(tmp_path / "index", routed.embedder.fingerprint())
    assert loaded.documents.vectors.numpy().tolist() == stored.tolist()
    np.testing.assert_array_equal(stored[[30, 31]], stored[[3, 0]])
    scores = {one["id"]: one["score"] for one in expected[0]}
    assert scores["once more"] == scores[ids[0]]


@pytest.mark.usefixtures("small_parts", "beside")
def test_a_stopped_call_goes_on_behind_its_last_part(
    task: RetrievalTask, routed: RoutedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, texts = task.collection.doc_ids, task.collection.doc_texts

    def stopped() -> itertools.chain:
        return itertools.chain(texts[:16], (1 / 0 for _ in [1]))

    with pytest.raises(ZeroDivisionError):
        routed.index(iter(ids), stopped(), folder=tmp_path / "index")
    parts = sorted((tmp_path / "index" / "parts").iterdir())
    assert [path.name for path in parts] == ["000000.safetensors", "000001.safetensors"]
    # The second part is damaged, and has to be made again.
    parts[1].write_bytes(parts[1].read_bytes()[:-4])
    encoded = []
    encode_ids = Embedder.encode_ids

    def counted(self: Embedder, some: list[list[int]], *more: object) -> torch.Tensor:
        encoded.append(len(some))
        return encode_ids(self, some, *more)

    monkeypatch.setattr(Embedder, "encode_ids", counted)
    routed.index(ids, texts, folder=tmp_path / "index")
    assert encoded == [7, 7, 7, 2]  # all but the first part of 30 documents
    found = routed.search(QUERIES)
    assert found == routed.index(ids, texts).search(QUERIES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("folder", [None, "index"])
def test_an_index_made_by_a_gpu_is_saved_and_loaded(
    task: RetrievalTask, tmp_path: Path, folder: str | None
) -> None:
    embedder = untrained_embedder(task.collection.doc_texts, EncoderSettings(depths=4))
    routed = RoutedEncoder(embedder.to("cuda"), fixed_router(task, 1), device="cuda")
    # Whoever computes on a stream of his own gets what is computed there.
    with torch.cuda.stream(torch.cuda.Stream()):
        ids, texts = task.collection.doc_ids, task.collection.doc_texts
        routed.index(ids, texts, folder=folder and tmp_path / folder)
        found = routed.search(QUERIES)
    routed.save(tmp_path / "saved")
    assert RoutedEncoder.load(tmp_path / "saved", device="cuda").search(QUERIES) == found
    assert routed.documents is not None
    vectors = routed.documents.documents.vectors.cpu()
    alone = task.embedder.encode_documents(texts)
    torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("small_parts")
def test_an_index_is_whole_when_its_vectors_are_on_the_disk(
    task: RetrievalTask, routed: RoutedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, texts, folder = task.collection.doc_ids, task.collection.doc_texts, tmp_path / "index"

    def full(path: Path) -> None:
        if path.name == VECTORS:
            raise InputError(f"{path} cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr(index_module, "synced", full)
        with pytest.raises(InputError, match=r"vectors\.npy cannot be written"):
            routed.index(ids, texts, folder=folder)
    assert not (folder / ABOUT).exists()
    assert len([*(folder / "parts").iterdir()]) == 5  # so that it can go on
    routed.index(ids, texts, folder=folder)
    found = routed.search(QUERIES)
    assert found == routed.index(ids, texts).search(QUERIES)


def test_parts_of_other_texts_or_of_another_type_are_not_taken(
    routed: RoutedEncoder, tmp_path: Path
) -> None:
    parts = document_parts.encoded_parts
    for texts, dtype in ((["a"], torch.float32), (["b"], torch.float32), (["b"], torch.float16)):
        (part,) = parts(routed.embedder, ["x"], texts, dtype, tmp_path)
        (fresh,) = parts(routed.embedder, ["x"], texts, dtype)
        vectors, digests = part.encoded()
        assert vectors.equal(fresh.encoded()[0])
        assert digests.equal(fresh.encoded()[1])
        assert vectors.dtype == dtype


@pytest.mark.parametrize("index", ["exact", "faiss:HNSW8"])
def test_what_is_saved_is_loaded(
    task: RetrievalTask, routed: RoutedEncoder, tmp_path: Path, index: str
) -> None:
    if index != "exact":
        pytest.importorskip("faiss")
    ids, texts = task.collection.doc_ids, task.collection.doc_texts
    expected = routed.index(ids, texts, index=index).search(QUERIES, 5)
    fused = routed.search(QUERIES, 5, hybrid=True)
    routed.save(tmp_path / "saved")
    loaded = RoutedEncoder.load(tmp_path / "saved", "cpu")
    assert loaded.search(QUERIES, 5) == expected
    assert loaded.search(QUERIES, 5, hybrid=True) == fused
    # Over itself, and elsewhere.
    loaded.save(tmp_path / "saved")
    loaded.save(tmp_path / "copy")
    assert RoutedEncoder.load(tmp_path / "copy", "cpu").search(QUERIES, 5) == expected
    assert RoutedEncoder.load(tmp_path / "saved", "cpu").search(QUERIES, 5) == expected


def test_an_encoder_without_documents_is_saved_too(routed: RoutedEncoder, tmp_path: Path) -> None:
    routed.save(tmp_path)
    loaded = RoutedEncoder.load(tmp_path, "cpu")
    np.testing.assert_array_equal(loaded.encode_query("honey"), routed.encode_query("honey"))
    with pytest.raises(InputError, match="nothing to search yet"):
        loaded.search("honey")


def test_damaged_and_foreign_indexes_are_refused(
    task: RetrievalTask, routed: RoutedEncoder, tmp_path: Path
) -> None:
    routed.index(["a", "b"], ["bees make honey", "the moon"]).save(tmp_path)
    folder = tmp_path / "index"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refused(name: str, content: bytes | None, message: str) -> None:
        for file, data in whole.items():
            (folder / file).write_bytes(data)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            RoutedEncoder.load(tmp_path, "cpu")
        assert "\n" not in str(caught.value)

    refused("index.json", None, "no index in")
    refused("index.json", b"{", "is not readable")
    refused("index.json", b"[" * 100_000, "is not readable")
    refused("index.json", b"[]", "is not readable")
    about = json.loads(whole["index.json"])
    refused("index.json", json.dumps(about | {"format": 9}).encode(), "by this version of maw_gym")
    other = json.dumps(about | {"encoder": "0" * 64}).encode()
    refused("index.json", other, "was made by encoder 000000000000, not")
    outside = about | {"sha256": about["sha256"] | {"../encoder.safetensors": "0"}}
    refused("index.json", json.dumps(outside).encode(), "by this version of maw_gym")
    for name in ("documents.jsonl", "vectors.npy", "words.safetensors"):
        refused(name, None, "no file of an index")
        refused(name, whole[name][:-1] + b"x", "is damaged")
    # A stranger can make checksums that fit.
    for name, content, message in (
        ("documents.jsonl", b'"a"\n7\n', "ids that are no strings"),
        ("documents.jsonl", b'"a"\n"a"\n', "holds no index: document ids must differ"),
        ("documents.jsonl", b'"a"\n', "holds no index: 1 ids for embeddings"),
        ("documents.jsonl", b'"a"\n{', "is not readable"),
        ("vectors.npy", b"no array", "is not readable"),
        ("vectors.npy", whole["vectors.npy"][:-9], "is not readable"),
    ):
        import hashlib

        changed = {**about, "sha256": about["sha256"] | {name: hashlib.sha256(content).hexdigest()}}
        whole["index.json"] = json.dumps(changed).encode()
        refused(name, content, message)


def test_settings_that_do_not_exist(routed: RoutedEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown index 'annoy'; give 'exact' or 'faiss:'"):
        routed.index(["a"], ["x"], index="annoy")
    with pytest.raises(InputError, match="dtype must be one of float32, float16, got 'int8'"):
        routed.index(["a"], ["x"], dtype="int8")
    with pytest.raises(InputError, match="2 document ids for 1 texts; give one each"):
        routed.index(iter(["a", "b"]), iter(["x"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        routed.index(["a"], ["x"], folder=tmp_path / "file")


def test_faiss_finds_and_exact_cosines_order(
    task: RetrievalTask, routed: RoutedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    ids, texts = task.collection.doc_ids, task.collection.doc_texts
    expected = routed.index(ids, texts).search(QUERIES[:3], 30)
    for factory in ("Flat", "HNSW16;efSearch=64", "IVF2,Flat;nprobe=1"):
        found = routed.index(ids, texts, index=f"faiss:{factory}").search(QUERIES[:3], 30)
        for of_query, exact in zip(found, expected, strict=True):
            assert [one for one in exact if one in of_query] == of_query
    assert routed.index(ids, texts, index="faiss:Flat").search(QUERIES[:3], 30) == expected
    assert routed.search([]) == []
    with pytest.raises(InputError, match="cannot build 'tree' of 2 documents: could not parse"):
        routed.index(["a", "b"], ["x", "y"], index="faiss:tree")
    with pytest.raises(InputError, match=r"cannot build 'Flat;ef=1' of 1 doc.*could not set"):
        routed.index(["a"], ["x"], index="faiss:Flat;ef=1")
    with pytest.raises(InputError, match="FAISS cannot build 'IVF99,Flat' of 2 documents"):
        routed.index(["a", "b"], ["x", "y"], index="faiss:IVF99,Flat")
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'maw_gym\[faiss\]'"):
        routed.index(["a"], ["x"], index="faiss:Flat")


def test_a_foreign_faiss_file_is_refused(
    task: RetrievalTask, routed: RoutedEncoder, tmp_path: Path
) -> None:
    faiss = pytest.importorskip("faiss")
    from maw_gym.retrieval.index import ApproximateIndex

    documents = routed.index(["a"], ["x"]).documents.documents
    (tmp_path / "none").write_bytes(b"nonsense")
    with pytest.raises(DamagedFileError, match="is no FAISS index: Index type"):
        ApproximateIndex.load(tmp_path / "none", documents)
    faiss.write_index(faiss.IndexFlatIP(3), str(tmp_path / "other"))
    with pytest.raises(DamagedFileError, match="is of 0 vectors of width 3, not of these"):
        ApproximateIndex.load(tmp_path / "other", documents)
