"""Parts are written by a thread, and where a GPU encodes, another one finds tokens ahead."""

import gc
from collections.abc import Callable
from pathlib import Path
from threading import Event, current_thread

import pytest
import torch

from maw_gym import files
from maw_gym.encoders import document_parts
from maw_gym.encoders.document_parts import UNWRITTEN, encoded_parts
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.errors import InputError

IDS = [f"d{number}" for number in range(20)]
TEXTS = [f"text of document {number}" for number in range(20)]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return untrained_embedder(TEXTS, EncoderSettings(depths=2))


@pytest.fixture
def before_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Gives a function: what it is given is called with the path of each part to be written."""
    monkeypatch.setattr(document_parts, "PART", 2)
    write_file = files.write

    def let(call: Callable[[Path], None]) -> None:
        def write(path: Path, *more: object) -> None:
            call(path)
            write_file(path, *more)

        monkeypatch.setattr(files, "write", write)

    return let


@pytest.mark.usefixtures("beside")
def test_encoding_does_not_wait_for_the_disk(
    embedder: Embedder, before_writing: Callable[..., None], tmp_path: Path
) -> None:
    go_on = Event()

    def wait(path: Path) -> None:
        assert go_on.wait(30), f"nobody went on while {path.name} was written"

    before_writing(wait)
    parts = encoded_parts(embedder, IDS, TEXTS, torch.float32, tmp_path)
    seen = [next(parts) for _ in range(UNWRITTEN)]
    assert not list(tmp_path.glob("*.safetensors"))
    go_on.set()
    seen += parts
    fresh = list(encoded_parts(embedder, IDS, TEXTS, torch.float32))
    for part, other in zip(seen, fresh, strict=True):
        assert part.doc_ids == other.doc_ids
        for tensor, same in zip(part.encoded(), other.encoded(), strict=True):
            assert tensor.equal(same)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("number", [1, 9])  # the last one is written behind the last document
def test_a_part_that_cannot_be_written_ends_the_encoding(
    embedder: Embedder, before_writing: Callable[..., None], tmp_path: Path, number: int
) -> None:
    def full(path: Path) -> None:
        if path.name == f"{number:06}.safetensors":
            raise InputError(f"{path.name} cannot be written")

    before_writing(full)
    seen = []
    with pytest.raises(InputError, match=rf"00000{number}\.safetensors cannot be written"):
        seen.extend(encoded_parts(embedder, IDS, TEXTS, torch.float32, tmp_path))
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"{part:06}.safetensors" for part in range(number)]


@pytest.mark.usefixtures("beside")
def test_an_encoding_that_is_left_has_written_what_it_gave(
    embedder: Embedder, before_writing: Callable[..., None], tmp_path: Path
) -> None:
    before_writing(lambda path: None)
    parts = encoded_parts(embedder, IDS, TEXTS, torch.float32, tmp_path)
    next(parts)
    part = next(parts)
    parts.close()
    vectors, _ = part.encoded()
    assert vectors.equal(embedder.encode_documents(TEXTS[2:4]))


def test_tokens_are_found_while_the_part_before_is_encoded(
    embedder: Embedder, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_parts, "PART", 2)
    caller, order = current_thread(), []
    tokens, encoded = document_parts._tokens, document_parts._encoded
    next_found = Event()

    def found(some: Embedder, texts: list[str]) -> object:
        assert (current_thread() is caller) is not beside
        order.append(("tokens", texts[0]))
        if texts[0] == TEXTS[2]:
            next_found.set()
        return tokens(some, texts)

    def embedded(some: Embedder, of: document_parts._Tokens, dtype: torch.dtype) -> torch.Tensor:
        assert current_thread() is caller
        if beside:
            assert next_found.wait(30), "the next part's tokens were not found meanwhile"
        order.append(("vectors", ""))
        return encoded(some, of, dtype)

    monkeypatch.setattr(document_parts, "_tokens", found)
    monkeypatch.setattr(document_parts, "_encoded", embedded)
    list(encoded_parts(embedder, IDS[:4], TEXTS[:4], torch.float32))
    kinds = [kind for kind, _ in order]
    assert kinds == (
        ["tokens", "tokens", "vectors", "vectors"]
        if beside
        else ["tokens", "vectors", "tokens", "vectors"]
    )


@pytest.mark.usefixtures("beside")
def test_equal_texts_are_encoded_once(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["bees", "ice", "bees", "  bees", "honey"]  # white space makes no other tokens
    expected = embedder.encode_documents(texts)
    encode_ids, counts = Embedder.encode_ids, []

    def counted(self: Embedder, ids: list[list[int]]) -> torch.Tensor:
        counts.append(len(ids))
        return encode_ids(self, ids)

    monkeypatch.setattr(Embedder, "encode_ids", counted)
    (part,) = encoded_parts(embedder, IDS[:5], texts, torch.float16)
    vectors, digests = part.encoded()
    assert counts == [3]
    assert vectors.dtype == torch.float16
    assert vectors[[2, 3]].equal(vectors[[0, 0]])
    assert digests[[2, 3]].equal(digests[[0, 0]])
    assert len(digests.unique(dim=0)) == len(vectors.unique(dim=0)) == 3
    torch.testing.assert_close(vectors.float(), expected, rtol=0, atol=1e-3)


def test_parts_know_their_texts_and_where_one_ends() -> None:
    contents = [document_parts._content(texts) for texts in (["ab", "c"], ["a", "bc"], ["abc"])]
    assert len(set(contents)) == 3
    assert document_parts._content(["\ud800"]) != document_parts._content(["?"])
    assert document_parts._content(["ab", "c"]) == contents[0]


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_of_cycles_rests_while_tokens_are_found(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    seen = []
    document_ids = Embedder.document_ids

    def found(self: Embedder, some: list[str]) -> list[list[int]]:
        seen.append(gc.isenabled())
        return document_ids(self, some) if len(some) == 1 else 1 / 0

    monkeypatch.setattr(Embedder, "document_ids", found)
    try:
        if not enabled:
            gc.disable()
        list(encoded_parts(embedder, ["x"], ["honey"], torch.float32))
        with pytest.raises(ZeroDivisionError):
            list(encoded_parts(embedder, ["x", "y"], ["honey", "ice"], torch.float32))
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen == [False, False]


def test_the_collector_of_cycles_rests_as_long_as_any_thread_wants_it_to() -> None:
    assert gc.isenabled()
    with document_parts.COLLECTOR.resting():
        with document_parts.COLLECTOR.resting():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
