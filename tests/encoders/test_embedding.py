import logging

import pytest
import torch

from maw_gym.encoders.embedder import Embedder, check_depths, truncated, untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.text import WordLlama, length_batches
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
CHOSEN = torch.tensor([0, 1, 2, 0, 1, 2, 1])


@pytest.fixture(scope="module")
def embedder():
    return untrained_embedder(["bees and bread", "bees"], EncoderSettings(depths=3))


class Contextual:
    """WordLlama behind the protocol of a text encoder whose states depend on their neighbours."""

    static = False

    def __init__(self, text):
        self.text = text
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.text, name)

    def hidden(self, ids, mask):
        self.seen.append(tuple(ids.shape))
        return self.text.hidden(ids, mask)


# --- batches ---------------------------------------------------------------------------------


def test_batches_are_of_similar_length_and_no_larger_than_allowed():
    #        row 0  1  2  3  4  5  6
    lengths = [5, 0, 2, 9, 2, 1, 5]
    assert length_batches(lengths, 10) == [[1, 5, 2, 4], [0, 6], [3]]
    assert length_batches(lengths, 1) == [[1], [5], [2], [4], [0], [6], [3]]
    assert length_batches(lengths, 1000) == [[1, 5, 2, 4, 0, 6, 3]]
    assert length_batches([], 10) == []
    assert length_batches([0, 0, 0], 2) == [[0, 1], [2]]


def test_truncation_is_logged(embedder, caplog):
    caplog.set_level(logging.INFO, "maw_gym.encoders.embedder")
    texts = ["how bees make honey", "bread", "", "bees and bread"]
    whole = embedder.text.tokenize(texts)
    assert [len(ids) for ids in whole] == [6, 1, 0, 4]
    cut = [whole[0][:4], *whole[1:]]
    assert truncated(embedder.text, texts, 4, "queries") == cut
    assert caplog.messages == ["1 of 4 queries truncated at 4 tokens"]
    caplog.clear()
    assert truncated(embedder.text, texts, 6, "queries") == whole
    assert caplog.messages == []


def test_queries_and_documents_are_cut_at_their_own_limits(embedder):
    short = Embedder(embedder.text, embedder.encoder, query_tokens=3, document_tokens=6)
    assert [len(ids) for ids in short.query_ids(TEXTS)] == [3, 0, 1, 3, 2, 3, 3]
    assert [len(ids) for ids in short.document_ids(TEXTS)] == [6, 0, 1, 6, 2, 6, 6]
    whole = embedder.query_ids(TEXTS)
    assert [len(ids) for ids in whole] == [6, 0, 1, 18, 2, 6, 64]
    assert short.query_ids(TEXTS)[3] == whole[3][:3]


# --- encoding --------------------------------------------------------------------------------


@pytest.mark.parametrize("depths", [None, CHOSEN], ids=["standard", "depths"])
def test_texts_together_equal_texts_alone(embedder, depths, monkeypatch):
    together = embedder.encode_queries(TEXTS, depths)
    assert together.shape == (7, 256)
    assert not together.requires_grad
    for row, text in enumerate(TEXTS):
        alone = embedder.encode_queries([text], None if depths is None else depths[row : row + 1])
        assert torch.allclose(alone[0], together[row], atol=1e-6)
    monkeypatch.setattr("maw_gym.encoders.embedder.BATCH_TOKENS", 16)
    assert torch.allclose(embedder.encode_queries(TEXTS, depths), together, atol=1e-6)


@pytest.mark.parametrize("depths", [None, CHOSEN], ids=["standard", "depths"])
def test_embeddings_are_of_unit_length_or_zero(embedder, depths):
    length = embedder.encode_queries(TEXTS, depths).norm(dim=1)
    assert torch.allclose(length, torch.tensor([1.0, 0, 1, 1, 1, 1, 1]), atol=1e-6)


def test_documents_take_the_standard_path(embedder):
    assert torch.equal(embedder.encode_documents(TEXTS[:6]), embedder.encode_queries(TEXTS[:6]))


def test_upper_case_is_folded(embedder):
    found = embedder.encode_queries(TEXTS)
    assert torch.allclose(found[0], found[5], atol=1e-6)


def test_no_text(embedder):
    assert embedder.encode_documents([]).shape == (0, 256)
    assert embedder.encode_queries([], torch.zeros(0, dtype=torch.long)).shape == (0, 256)
    assert list(embedder.query_statistics([])) == []


@pytest.mark.parametrize("depths", [None, CHOSEN], ids=["standard", "depths"])
def test_contextual_states_take_the_general_path(embedder, depths):
    text = Contextual(embedder.text)
    general = Embedder(text, embedder.encoder)
    expected = embedder.encode_queries(TEXTS, depths)
    assert torch.allclose(general.encode_queries(TEXTS, depths), expected, atol=1e-6)
    assert text.seen == [(7, 64)]  # the batch itself; the static path asks for each token once


def test_statistics_of_every_query(embedder):
    ids = embedder.query_ids(TEXTS)
    seen = []
    for rows, statistics, content in embedder.query_statistics(ids, batch_tokens=20):
        seen += rows.tolist()
        for at, row in enumerate(rows.tolist()):
            for depth in range(3):
                expected = embedder.encode_queries([TEXTS[row]], torch.tensor([depth]))[0]
                assert torch.allclose(statistics.embeddings[at, depth], expected, atol=1e-5)
            hidden = embedder.text.hidden(torch.tensor(ids[row], dtype=torch.long))
            total = torch.nn.functional.normalize(hidden.sum(0), dim=0)
            assert torch.allclose(content[at], total, atol=1e-6)
    assert sorted(seen) == list(range(7))


# --- what can go wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([0, 1, -1], "depth -1 is not one of 0 to 2"),
        ([0, 3, 1], "depth 3 is not one of 0 to 2"),
        ([0, 1], r"depths of shape \(2,\) for 3 texts; give one each"),
        ([[0, 1, 2]], r"depths of shape \(1, 3\) for 3 texts; give one each"),
    ],
)
def test_depths_that_do_not_exist(embedder, depths, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        embedder.encode_queries(TEXTS[:3], torch.tensor(depths))


def test_every_depth_is_accepted():
    check_depths(torch.tensor([0, 1, 2]), 3, 3)


def test_a_non_maw_encoder_has_no_depths():
    plain = untrained_embedder([], EncoderSettings(depths=0))
    assert plain.encode_queries(TEXTS[:1]).shape == (1, 256)
    for ask in (
        lambda: plain.maw,
        lambda: plain.encode_queries(TEXTS[:1], torch.tensor([0])),
        lambda: next(plain.query_statistics([[5]])),
    ):
        with pytest.raises(InputError, match=r"^this encoder is NON-MAW"):
            ask()


# --- the rest --------------------------------------------------------------------------------


def test_everything_learned(embedder):
    assert set(embedder.tensors()) == set(embedder.encoder.state_dict())
    table = torch.nn.Parameter(WordLlama().embedding.clone())
    trained = Embedder(WordLlama(table), embedder.encoder)
    assert set(trained.tensors()) == {*embedder.encoder.state_dict(), "text.embedding"}
    assert trained.tensors()["text.embedding"] is table


def test_gradients_reach_trained_token_embeddings(embedder):
    table = torch.nn.Parameter(WordLlama().embedding.clone())
    trained = Embedder(WordLlama(table), embedder.encoder)
    ids, mask = torch.tensor([[7, 9]]), torch.ones(1, 2, dtype=torch.bool)
    trained.embed(ids, mask)[0, 0].backward()
    assert table.grad[[7, 9]].abs().sum(1).gt(0).all()
    assert table.grad.abs().sum(1).count_nonzero() == 2


def test_moving_keeps_the_settings(embedder):
    moved = Embedder(embedder.text, embedder.encoder, 5, 6).to("cpu")
    assert (moved.query_tokens, moved.document_tokens) == (5, 6)
    assert moved.device == torch.device("cpu")
