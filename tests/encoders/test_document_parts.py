"""Parts are written by a thread, while the next ones are encoded."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch

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
    write_tensors = document_parts.write_tensors

    def let(call: Callable[[Path], None]) -> None:
        def write(path: Path, *more: object) -> None:
            call(path)
            write_tensors(path, *more)

        monkeypatch.setattr(document_parts, "write_tensors", write)

    return let


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
    fresh = encoded_parts(embedder, IDS, TEXTS, torch.float32)
    for part, other in zip(seen, fresh, strict=True):
        assert part.doc_ids == other.doc_ids
        for tensor, same in zip(part.encoded(), other.encoded(), strict=True):
            assert tensor.equal(same)


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
    assert written[:number] == [f"{part:06}.safetensors" for part in range(number)]
    # Nothing that was encoded is lost, and not much is encoded in vain.
    assert len(written) <= number + UNWRITTEN + 1


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
