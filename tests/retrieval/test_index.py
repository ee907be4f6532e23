from pathlib import Path

import numpy as np
import pytest
import torch

from maw_gym.agents.baselines import fixed_router
from maw_gym.encoders import embedder as embedder_module
from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.text import load_text_encoder
from maw_gym.errors import InputError
from maw_gym.files import write_json, write_manifest
from maw_gym.retrieval.index import KIND
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.task import RetrievalTask

QUERIES = ["how bees make honey", "polar ice melting", "nothing of that kind", ""]
IDS = ["d1", "d2", "d3"]
ANIMALS = ["bees make honey", "whales sing under water", "camels live in the desert"]
TOOLS = ["the violin has four strings", "a lamp turns power into light", "tyres have a tube"]


def another(task):
    return RoutedEncoder(task.embedder, fixed_router(task, 1))


@pytest.fixture
def routed(task):
    return another(task)


def saved(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rewritten(folder, about):
    """A stranger can make checksums that fit."""
    (folder / "manifest.json").unlink()
    write_manifest(folder, KIND, about)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stream_on_disk_is_searched_as_lists_in_memory(
    task, routed, tmp_path, dtype, monkeypatch
):
    monkeypatch.setattr(embedder_module, "PORTION", 7)
    # Two texts come again, in other portions and other batches.
    texts = task.collection.doc_texts
    ids, texts = [*task.collection.doc_ids, "again", "once more"], [*texts, texts[3], texts[0]]
    expected = routed.index(ids, texts, dtype=dtype).search(QUERIES, 32)
    fused = routed.search(QUERIES, 32, hybrid=True)
    routed.index(iter(ids), iter(texts), dtype=dtype, folder=tmp_path / "index")
    assert routed.search(QUERIES, 32) == expected
    assert routed.search(QUERIES, 32, hybrid=True) == fused
    stored = np.load(tmp_path / "index" / "vectors.npy")
    assert (stored.dtype, stored.shape) == (dtype, (32, 256))
    np.testing.assert_array_equal(stored[[30, 31]], stored[[3, 0]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("folder", [None, "index"])
def test_an_index_made_by_a_gpu_is_saved_and_loaded(task, tmp_path, folder):
    embedder = untrained_embedder(task.collection.doc_texts, EncoderSettings(depths=4))
    routed = RoutedEncoder(embedder.to("cuda"), fixed_router(task, 1), device="cuda")
    ids, texts = task.collection.doc_ids, task.collection.doc_texts
    # Whoever computes on a stream of his own gets what is computed there.
    with torch.cuda.stream(torch.cuda.Stream()):
        routed.index(ids, texts, folder=folder and tmp_path / folder)
        found = routed.search(QUERIES)
    routed.save(tmp_path / "saved")
    assert RoutedEncoder.load(tmp_path / "saved", device="cuda").search(QUERIES) == found
    assert routed.documents is not None
    vectors = routed.documents.documents.vectors.cpu()
    torch.testing.assert_close(vectors, task.embedder.encode_documents(texts), rtol=0, atol=1e-4)


@pytest.mark.parametrize("index", ["exact", "faiss:HNSW8", "faiss:IVF2,SQ8"])
def test_what_is_saved_is_loaded(task, routed, tmp_path, index):
    if index != "exact":
        pytest.importorskip("faiss")
    ids, texts = task.collection.doc_ids, task.collection.doc_texts
    expected = routed.index(ids, texts, index=index).search(QUERIES, 5)
    fused = routed.search(QUERIES, 5, hybrid=True)
    routed.save(tmp_path)
    for _ in range(2):  # over itself, too
        loaded = RoutedEncoder.load(tmp_path, "cpu")
        assert loaded.search(QUERIES, 5) == expected
        assert loaded.search(QUERIES, 5, hybrid=True) == fused
        loaded.save(tmp_path)


def test_what_is_saved_without_documents_has_none(task, routed, tmp_path):
    """Those of an earlier save do not come back, nor keep another encoder from loading."""
    (tmp_path / "notes.txt").write_text("mine")
    another(task).index(["old"], ["bees make honey"]).save(tmp_path)
    routed.save(tmp_path)
    loaded = RoutedEncoder.load(tmp_path, "cpu")
    assert loaded.documents is None
    np.testing.assert_array_equal(loaded.encode_query("honey"), routed.encode_query("honey"))
    assert sorted(saved(tmp_path)) == ["encoder.safetensors", "notes.txt", "router.safetensors"]


def test_a_transformer_is_saved_beside_the_index(task, tiny_transformer, tmp_path):
    text = load_text_encoder(str(tiny_transformer))
    embedder = untrained_embedder(ANIMALS, encoder_shape(text, depths=4), text)
    routed = RoutedEncoder(embedder, fixed_router(RetrievalTask(task.collection, embedder), 1))
    expected = embedder.encode_documents(ANIMALS)
    for _ in range(2):  # over itself, too, and then with documents
        routed.save(tmp_path)
        routed = RoutedEncoder.load(tmp_path, "cpu")
        np.testing.assert_allclose(routed.encode_document(ANIMALS), expected, atol=1e-6)
        routed.index(IDS, ANIMALS)


def test_two_indexes_of_one_folder_are_never_mixed(task, tmp_path):
    folder = tmp_path / "mine" / "index"
    first = another(task).index(IDS, ANIMALS, folder=folder)
    second = another(task).index(["t1", "t2", "t3"], TOOLS, folder=folder, hybrid=False)
    assert first.search("honey of bees", 1)[0]["id"] == "d1"
    assert second.search("violin strings", 1)[0]["id"] == "t1"
    first.save(tmp_path / "mine")
    loaded = RoutedEncoder.load(tmp_path / "mine", "cpu")
    assert loaded.search("violin strings", 3) == first.search("violin strings", 3)
    assert loaded.search("honey", 3, hybrid=True) == first.search("honey", 3, hybrid=True)


@pytest.mark.parametrize("full", ["vectors.npy", "encoder.safetensors", "router.safetensors"])
def test_a_save_that_fails_leaves_what_was_saved(task, routed, tmp_path, full, monkeypatch):
    routed.index(IDS, ANIMALS).save(tmp_path)
    before = saved(tmp_path)
    other = untrained_embedder(["other"], EncoderSettings(depths=4))
    router = fixed_router(RetrievalTask(task.collection, other), 0)
    new = RoutedEncoder(other, router).index(IDS, TOOLS)
    path_open = Path.open

    def no_room(*given, **more):
        raise OSError(28, "No space left on device")

    def opened(self, mode="r", *more, **named):
        if full in self.name and mode[0] in "wx":
            no_room()
        return path_open(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", opened)
    if full == "vectors.npy":
        monkeypatch.setattr(np, "save", no_room)
    with pytest.raises(InputError, match="cannot be written: No space left on device; make room"):
        new.save(tmp_path)
    assert saved(tmp_path) == before


WHOLE = np.ones((2, 256), np.float32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("documents.jsonl", b'"a"\n7\n', "lines that are no strings"),
        ("documents.jsonl", b'"a"\n"a"\n', "holds no index: document ids must differ"),
        ("documents.jsonl", b'"a"\n', "holds no index: 1 ids for 2 texts"),
        ("documents.jsonl", b'"a"\n{', "holds no index"),
        ("texts.jsonl", b'"a"\n\xff', "holds no index"),
        ("vectors.npy", b"no array", "holds no index"),
        ("vectors.npy", b"", "holds no index"),
        ("vectors.npy", WHOLE.astype(np.int32), "no rows of float32"),
        ("vectors.npy", WHOLE[:, 0], "2 ids for embeddings"),
        ("vectors.npy", np.asfortranarray(WHOLE), "no rows of float32"),
        ("vectors.npy", WHOLE.astype(">f4"), "no rows of float32"),
        ("vectors.npy", WHOLE * np.float32(np.nan), "must be finite"),
        ("vectors.npy", np.array([["a"]], object), "holds no index"),
        ("vectors.npy", WHOLE[:, :7].copy(), "its vectors have 7 numbers"),
        ("words/params.index.json", b"{}", "is no BM25 index"),
        ("words/data.csc.index.npy", b"no array", "is no BM25 index"),
        ("words/data.csc.index.npy", np.full(7, np.nan, np.float32), "lead outside"),
        ("words/indices.csc.index.npy", np.full(7, 2, np.int32), "lead outside"),
        ("words/indices.csc.index.npy", np.full(7, -1, np.int32), "lead outside"),
        ("words/indptr.csc.index.npy", np.array([0, 7, 3, 4, 5, 6, 7, 7]), "lead outside"),
        ("words/indptr.csc.index.npy", np.zeros(0, int), "is no BM25 index"),
        ("words/vocab.index.json", b'{"bee": 7}', "lead outside"),
        ("words/vocab.index.json", b'{"bee": "0"}', "lead outside"),
        ("encoder", "0" * 64, "was made by encoder 000000000000, not"),
        ("index", "faiss:Flat", "is no FAISS index|needs FAISS"),
        ("manifest.json", [], "was not written by maw_gym"),
        ("manifest.json", {"settings": {}}, "was not written by maw_gym"),
        ("manifest.json", {"settings": {}, "files": [[1, 2]]}, "was not written by maw_gym"),
        ("manifest.json", {"settings": {}, "files": {"a" * 300: 7}}, "a' is gone"),
    ],
)
def test_foreign_indexes_are_refused(routed, tmp_path, name, content, message):
    routed.index(["a", "b"], ANIMALS[:2], store=True).save(tmp_path)
    about = {"encoder": routed.embedder.fingerprint(), "index": "exact"}
    if isinstance(content, bytes):
        (tmp_path / "index" / name).write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(tmp_path / "index" / name, content)
    rewritten(tmp_path / "index", about | {name: content} if isinstance(content, str) else about)
    if isinstance(content, list | dict):
        write_json(tmp_path / "index" / name, content, KIND)
    with pytest.raises(InputError, match=message) as caught:
        RoutedEncoder.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def test_settings_and_folders_that_cannot_be(routed, tmp_path):
    file = tmp_path / "thesis.tex"
    file.write_text("years of work")
    for ids, how, message in (
        ("a", {"index": "annoy"}, "unknown index 'annoy'; give 'exact' or 'faiss:'"),
        ("a", {"dtype": "int8"}, "unknown dtype .int8.; choose one of float32, float16"),
        ("ab", {}, "2 document ids for 1 texts; give one each"),
        ("a", {"folder": file}, "cannot be written"),
        ("a", {"folder": tmp_path}, "holds other files"),
    ):
        with pytest.raises(InputError, match=message):
            routed.index(iter(ids), iter(["x"]), **how)
    assert saved(tmp_path) == {"thesis.tex": b"years of work"}


def test_faiss_finds_and_exact_cosines_order(task, routed, monkeypatch):
    pytest.importorskip("faiss")
    ids, texts = task.collection.doc_ids, task.collection.doc_texts
    expected = routed.index(ids, texts).search(QUERIES[:3], 30)
    for factory in ("Flat", "HNSW16;efSearch=64", "IVF2,Flat;nprobe=1"):
        found = routed.index(ids, texts, index=f"faiss:{factory}").search(QUERIES[:3], 30)
        for of_query, exact in zip(found, expected, strict=True):
            assert [one for one in exact if one in of_query] == of_query
    assert routed.index(ids, texts, index="faiss:Flat").search(QUERIES[:3], 30) == expected
    assert routed.search([]) == []
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'maw_gym\[faiss\]'"):
        routed.index(["a"], ["x"], index="faiss:Flat")


NUMBERS = "numbers of a FAISS index are 2 to 9999999, got"  # others end the process


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tree", "cannot build 'tree' of 2 documents: could not parse"),
        ("Flat;ef=1", "cannot build 'Flat;ef=1' of 2 documents: .*could not set"),
        ("IVF99,Flat", "FAISS cannot build 'IVF99,Flat' of 2 documents"),
        *((kind, NUMBERS) for kind in ("HNSW0", "HNSW1", "PQ4x0", "NSG0", "IVF2_HNSW0,Flat")),
    ],
)
def test_factories_that_cannot_be(routed, factory, message):
    pytest.importorskip("faiss")
    with pytest.raises(InputError, match=message):
        routed.index(["a", "b"], ["x", "y"], index=f"faiss:{factory}")


def test_a_foreign_faiss_file_is_refused(routed, tmp_path):
    faiss = pytest.importorskip("faiss")
    routed.index([*IDS, "e", "f", "g"], ANIMALS + TOOLS, index="faiss:IVF2,Flat").save(tmp_path)
    folder, about = tmp_path / "index", {"encoder": routed.embedder.fingerprint()}

    def refused(message):
        rewritten(folder, about | {"index": "faiss:IVF2,Flat"})
        with pytest.raises(InputError, match=message):
            RoutedEncoder.load(tmp_path, "cpu")

    (folder / "approximate.faiss").write_bytes(b"nonsense")
    refused("is no FAISS index: Index type")
    faiss.write_index(faiss.IndexFlatIP(3), str(folder / "approximate.faiss"))
    refused("0 vectors of width 3, not these")
    # Lists in another file, which FAISS would open and write to.
    vectors = np.load(folder / "vectors.npy")
    index = faiss.index_factory(256, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    victim = tmp_path / "victim"
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(victim))
    index.replace_invlists(lists)
    index.add(vectors)
    faiss.write_index(index, str(folder / "approximate.faiss"))
    del index, lists
    victim.unlink()
    refused("its inverted lists are in another file")
    assert not victim.exists()
