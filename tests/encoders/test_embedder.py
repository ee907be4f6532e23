import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maw_gym.encoders import embedder as module
from maw_gym.encoders.embedder import Embedder, encoded_documents, encoder_shape, untrained_embedder
from maw_gym.encoders.files import document_embeddings
from maw_gym.encoders.maw import EncoderSettings, NonMAWEncoder
from maw_gym.encoders.text import WordLlama, length_batches, load_text_encoder
from maw_gym.errors import InputError

TEXTS = [
    "how bees make honey",
    "",
    "bread",
    "the pull of the moon lifts the sea, so the water rises twice a day",
    "\ud800",
    "HOW BEES MAKE HONEY",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 8,
]
PLAIN = EncoderSettings(depths=0)


@pytest.fixture(scope="module")
def embedder():
    return untrained_embedder(["bees and bread", "bees"], EncoderSettings(depths=3))


@pytest.fixture(scope="module")
def plain(tiny):
    return untrained_embedder(tiny.doc_texts, PLAIN)


def close(found, expected, atol=1e-6):
    return torch.allclose(found, expected, rtol=0, atol=atol)


def test_an_untrained_embedder_knows_how_rare_tokens_are(embedder):
    bees, bread = (ids[-1] for ids in embedder.text.tokenize(["bees", "bread"]))
    # Of 2 documents a token is in both, in one, in none: log(3 / 2.5) is cut at .5. An empty
    # document counts: log(3 / 1.5); without any, log(1 / .5) of every token.
    for texts, token, idf in (
        (["bees and bread", "bees"], bees, 0.5),
        (["bees and bread", "bees"], bread, math.log(3 / 1.5)),
        (["bees and bread", "bees"], 1234, math.log(3 / 0.5)),
        (["", "bees"], bees, math.log(3 / 1.5)),
        ([], bees, math.log(1 / 0.5)),
    ):
        weight = untrained_embedder(texts, PLAIN).encoder.token_weight[token].item()
        assert weight == pytest.approx(math.log(idf), abs=1e-5)


def test_an_untrained_embedder_of_no_depths_is_non_maw(plain):
    assert type(plain.encoder) is NonMAWEncoder
    assert untrained_embedder([]).encoder.settings == EncoderSettings()
    for ask in (
        lambda: plain.maw,
        lambda: plain.encode_queries(TEXTS[:1], torch.tensor([0])),
        lambda: next(plain.query_statistics([[5]])),
    ):
        with pytest.raises(InputError, match=r"^this encoder is NON-MAW"):
            ask()


def test_batches_are_of_similar_length_and_no_larger_than_allowed():
    #        row 0  1  2  3  4  5  6
    lengths = [5, 0, 2, 9, 2, 1, 5]
    assert length_batches(lengths, 10) == [[1, 5, 2, 4], [0, 6], [3]]
    assert length_batches(lengths, 1) == [[1], [5], [2], [4], [0], [6], [3]]
    assert length_batches([], 10) == []
    assert length_batches([0, 0, 0], 2) == [[0, 1], [2]]


def test_queries_and_documents_are_cut_at_their_own_limits(embedder, caplog):
    caplog.set_level("INFO", "maw_gym.encoders.embedder")
    short = Embedder(embedder.text, embedder.encoder, query_tokens=3, document_tokens=6).to("cpu")
    assert [len(ids) for ids in short.query_ids(TEXTS)] == [3, 0, 1, 3, 2, 3, 3]
    assert [len(ids) for ids in short.document_ids(TEXTS)] == [6, 0, 1, 6, 2, 6, 6]
    assert caplog.messages == [
        "4 of 7 queries truncated at 3 tokens",
        "2 of 7 documents truncated at 6 tokens",
    ]
    whole = embedder.query_ids(TEXTS)
    assert [len(ids) for ids in whole] == [6, 0, 1, 18, 2, 6, 64]
    assert short.query_ids(TEXTS)[3] == whole[3][:3]


@pytest.mark.parametrize("kind", ["static", "contextual"])
def test_texts_together_equal_texts_alone(kind, tiny_transformer, monkeypatch):
    text = WordLlama() if kind == "static" else load_text_encoder(str(tiny_transformer))
    embedder = untrained_embedder([], encoder_shape(text, depths=3), text)
    depths = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    standard, routed = embedder.encode_queries(TEXTS), embedder.encode_queries(TEXTS, depths)
    assert routed.shape == (7, text.width)
    assert not routed.requires_grad
    assert close(standard[0], standard[5])  # upper case is folded
    few = TEXTS[:6]
    assert torch.equal(embedder.encode_documents(few), embedder.encode_queries(few))
    for row, one in enumerate(TEXTS):
        assert close(embedder.encode_queries([one])[0], standard[row], atol=1e-5)
        assert close(embedder.encode_queries([one], depths[[row]])[0], routed[row], atol=1e-5)
        has_tokens = float(bool(text.tokenize([one])[0]))
        assert routed[row].norm().item() == pytest.approx(has_tokens, abs=1e-5)
    monkeypatch.setattr(module, "BATCH_TOKENS", 80)  # several batches
    assert close(embedder.encode_queries(TEXTS, depths), routed, atol=1e-5)
    found = torch.zeros_like(routed)
    for rows, statistics in embedder.query_statistics(embedder.query_ids(TEXTS)):
        found[rows] = statistics.embeddings[torch.arange(len(rows)), depths[rows]]
    assert close(found, routed, atol=1e-5)


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([0, 1, -1], "depth -1 is not one of 0 to 2"),
        ([0, 3, 1], "depth 3 is not one of 0 to 2"),
        ([0, 1], r"depths of shape \(2,\) for 3 texts; give one each"),
        ([[0, 1, 2]], r"depths of shape \(1, 3\) for 3 texts; give one each"),
        ([0.0, 1.0, 2.0], "depths must be a tensor of whole numbers, not .*"),
    ],
)
def test_depths_that_do_not_exist(embedder, depths, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        embedder.encode_queries(TEXTS[:3], torch.tensor(depths))


STREAM = ["bees", "ice", "bees", "", "  bees", "honey", "ice"]  # white space makes no other tokens
NAMES = [f"d{row}" for row in range(len(STREAM))]


@pytest.mark.parametrize(
    ("portion", "dtype", "sizes"),
    [(2, torch.float32, [2, 2, 2, 1]), (100, torch.float16, [7])],
)
def test_a_stream_is_read_once_in_portions(plain, monkeypatch, portion, dtype, sizes):
    expected, encode_ids = plain.encode_documents(STREAM), Embedder.encode_ids
    monkeypatch.setattr(  # as by rounding
        Embedder, "encode_ids", lambda *given: encode_ids(*given) + torch.rand(1) * 1e-6
    )
    monkeypatch.setattr(module, "PORTION", portion)
    seen = []
    ids, vectors = encoded_documents(plain, iter(NAMES), iter(STREAM), dtype, [seen.append])
    assert ids == NAMES
    assert [len(some) for some in seen] == sizes
    assert [text for some in seen for text in some] == STREAM
    assert vectors.dtype == dtype
    assert close(vectors.float(), expected, atol=1e-3)
    # Equal texts have one vector, whichever portion they came in.
    assert vectors[[2, 4, 6]].equal(vectors[[0, 0, 1]])
    assert len(vectors.unique(dim=0)) == 4


def test_vectors_are_in_memory_once(plain, monkeypatch):
    monkeypatch.setattr(module, "PORTION", 1000)
    monkeypatch.setattr(Embedder, "document_ids", lambda _, texts: [[int(one)] for one in texts])
    monkeypatch.setattr(Embedder, "encode_ids", lambda _, ids: torch.ones(len(ids), 256))
    ids = [str(row) for row in range(150_000)]
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    except OSError:
        pytest.skip("the peak of memory cannot be set back here")

    def megabytes(name):
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024

    before = megabytes("VmRSS")
    _, vectors = encoded_documents(plain, ids, ids)
    assert vectors.shape == (150_000, 256)  # 146 MB
    assert megabytes("VmHWM") - before < 260


def test_documents_are_encoded_once_and_others_anew(tiny, plain, home, monkeypatch):
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=2))
    first = document_embeddings(tiny, embedder)
    assert torch.equal(first, embedder.encode_documents(tiny.doc_texts))
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "encode_ids", None)
        # Whatever its depths, an encoder of the same standard attention shares them.
        assert torch.equal(document_embeddings(tiny, plain), first)
    heads = untrained_embedder(tiny.doc_texts, replace(PLAIN, heads=4))
    even = untrained_embedder([], PLAIN)
    for other in (replace(plain, document_tokens=3), heads, even):
        assert not torch.equal(document_embeddings(tiny, other), first)
    document_embeddings(tiny._replace(provenance={**tiny.provenance, "content": "others"}), plain)
    assert len(list((home / "documents").glob("*.safetensors"))) == 5
