"""One contract for every kind of file that the project writes: what is not as written is refused.

And for data from strangers: whatever is in it, nothing is run, written elsewhere or allocated.
`MAW_GYM_FLIPS=500 pytest tests/files/test_every_kind.py` flips more bits in each kind.
"""

import json
import os
import pickle
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hand_made import random_table
from tiny_transformer import write_tiny_transformer

from maw_gym import files
from maw_gym.checkpoints import Checkpoints
from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import fingerprint, read_json, write_json
from maw_gym.retrieval.bm25 import Words
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.index import SearchIndex
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router
from maw_gym.runners.experiments.runs import open_run
from maw_gym.runners.experiments.settings import FolderSettings
from maw_gym.tables.depth_table import read_table, write_table

FLIPS = int(os.environ.get("MAW_GYM_FLIPS", "60"))
TEXTS = ["bees make honey", "whales sing under water", "camels live in the desert"]


# Each writes a kind of file; its path, or that of a folder, and what a reader makes of it.
def checkpoint(folder):
    checkpoints = Checkpoints(folder / "checkpoints", {"run": "this"})
    path = checkpoints.write(7, {"a": torch.arange(100.0)}, {"at": [1, 0.5, "é"]})

    def content():
        found = checkpoints.restore(lambda _: None)
        if found is None:
            raise DamagedFileError("left out")
        return found.step, found.state, fingerprint(found.tensors)

    return path, content


def router(folder):
    draw = torch.Generator().manual_seed(0)
    layers = [(torch.randn(n, m, generator=draw), torch.randn(n)) for n, m in ((32, 64), (8, 32))]
    about = {"learner": "GRPO", "dataset": "pydocs", "encoder": "0" * 64, "seed": 0}
    made = DepthRouter(layers, "tanh", torch.zeros(64), torch.ones(64), ["attention"], about, 10.0)
    path = folder / "router.safetensors"
    save_router(path, made)

    def content():
        found = load_router(path)
        plain = (found.activation, found.limit, found.observation, found.settings, found.shared)
        return plain, fingerprint(found.state_dict())

    return path, content


def encoder(folder, text=None):
    path = folder / "encoder.safetensors"
    embedder = untrained_embedder(TEXTS, encoder_shape(text or WordLlama(), depths=2), text)
    save_embedder(path, embedder, {"names": ["tiny"], "validation nDCG@10": 0.5})

    def content():
        found, provenance = load_embedder(path)
        return found.fingerprint(), provenance

    return path if text is None else folder, content


def transformer(folder):
    model = write_tiny_transformer(folder.with_name("tiny_transformer"))
    return encoder(folder, load_text_encoder(str(model)))


def table(folder):
    path = folder / "table.safetensors"
    write_table(path, random_table(200, 8))

    def content():
        found = read_table(path)
        return found.query_ids, [column.tobytes() for column in found.columns.values()]

    return path, content


def result(folder):
    path = folder / "result.json"
    write_json(path, {"nDCG@10": [0.1, 1 / 3], "name": "é"}, "result")
    return path, lambda: read_json(path, "result")


def index(folder):
    path, words = folder / "index", Words()
    words.add(TEXTS)
    vectors = torch.nn.functional.normalize(torch.arange(12.0).view(3, 4) + 1)
    SearchIndex.of(DocumentIndex(["a", "b", "é"], vectors), "0" * 64, words, folder=path)

    def content():
        found = SearchIndex.load(path, "0" * 64)
        ranked = found.rank(vectors, 3, TEXTS, 0.5)
        return found.documents.doc_ids, fingerprint({"": found.documents.vectors}), str(ranked)

    return path, content


KINDS = [checkpoint, router, encoder, transformer, table, result, index]


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def written(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("kind"))


def parts(path):
    paths = [path] if path.is_file() else sorted(path.rglob("*"))
    return [path for path in paths if path.is_file()]


def given(content, path, data):
    """What the reader makes of a file with other bytes; the line by which it is refused, with its
    class, where it is. The file is mended."""
    before = path.read_bytes()
    path.unlink()  # not in place: what was read before is still mapped
    if data is not None:
        path.write_bytes(data)
    try:
        return content()
    except InputError as problem:
        return problem
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(before)


def test_a_flipped_bit_is_refused_or_changes_nothing(written):
    place, content = written
    before, draw = content(), random.Random(0)
    for path in parts(place):
        data, refused = path.read_bytes(), 0
        header = min(len(data), 8 + int.from_bytes(data[:8], "little"))
        for number in range(FLIPS):
            changed = bytearray(data)
            bit = draw.randrange(8 * (header if number % 2 else len(data)))
            changed[bit // 8] ^= 1 << bit % 8
            found = given(content, path, bytes(changed))
            assert isinstance(found, InputError) or found == before, f"{path.name}: bit {bit}"
            refused += found != before
        assert refused > 0.9 * FLIPS, path.name


METADATA = ("no JSON", "[]", "null", '{"kind": "thing"}', "[" * 100_000)


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def with_header(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, size, dtype="F32"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


def test_other_content_is_refused_nothing_is_run_and_nothing_huge_is_allocated(written, tmp_path):
    mark = tmp_path / "it ran"
    pickled = pickle.dumps({"query_proj.weight": Bomb(mark)})
    torch.save({"query_proj.weight": Bomb(mark)}, tmp_path / "by torch")
    strange = [
        None,  # gone
        pickled,
        (tmp_path / "by torch").read_bytes(),
        with_header(entry([len(pickled)], len(pickled), "U8"), pickled),
        *(with_header({"__metadata__": {"maw_gym": text}}) for text in METADATA),
        with_header({"__metadata__": {"maw_gym": json.dumps({"settings": pickled.hex()})}}),
        with_header(entry([2**40], 2**42), b"few"),
        with_header(entry([2**62, 2**62], 3), b"few"),
        with_header(entry([-1, -3], 12), b"0" * 12),
        with_header(b"{}", length=2**62),
        with_header(b"[" * 2_000_000),
        with_header(b"\xff\xfe"),
        b"[" * 100_000,
        b"\0" * 100,
    ]
    place, content = written
    for path in parts(place):
        data = path.read_bytes().rstrip()  # of JSON the last line end may be missing
        cut = [data[:length] for length in {0, 7, 20, len(data) // 2, len(data) - 1} - {len(data)}]
        for number, other in enumerate(strange + cut):
            found = given(content, path, other)
            assert isinstance(found, InputError), f"{path.name}: {number}"
            assert "\n" not in str(found)
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists()  # the bomb goes off where it is loaded


@pytest.mark.parametrize("make", [checkpoint, router, encoder, table], ids=lambda it: it.__name__)
def test_other_kinds_and_newer_versions_are_no_damage(make, tmp_path):
    (path, content), other = make(tmp_path), tmp_path / "other"
    files.write(other, {}, "something else", {})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    about = json.loads(header["__metadata__"]["maw_gym"]) | {"format": 2}
    header["__metadata__"]["maw_gym"] = json.dumps(about)
    newer = with_header(header, whole[8 + length :])
    for data, message in (
        (other.read_bytes(), "holds a 'something else'"),
        (newer, "by a newer version of maw_gym"),
    ):
        found = given(content, path, data)
        assert type(found) is InputError
        assert message in str(found)


def test_names_that_are_paths_write_nothing(tmp_path):
    for name in ("../evil", "/etc/evil", "a/../../evil", "..", ".", "", "a\0b"):
        with pytest.raises(InputError):
            open_run(FolderSettings(logdir=tmp_path, run_name=name), "default")
    assert list(tmp_path.iterdir()) == []
    assert open_run(FolderSettings(logdir=tmp_path), "grpo-a/../evil-../../evil").parent == tmp_path


def test_of_parallel_writers_a_reader_sees_one_whole(tmp_path):
    path, plain = tmp_path / "file.safetensors", tmp_path / "file.json"

    def write(number, times=1):
        for _ in range(times):
            files.write(path, {"a": torch.full((1000,), number)}, "thing", {"number": number})
            write_json(plain, [number] * 100, "thing")

    write(0.0)
    seen = set()
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number, 30) for number in (1.0, 2.0)]
        while not all(writer.done() for writer in writers):
            settings, tensors = files.read(path, "thing")
            assert (tensors["a"] == settings["number"]).all()
            (number,) = set(read_json(plain, "thing"))
            seen |= {number, settings["number"]}
    assert {1.0, 2.0} & seen
    assert [writer.exception() for writer in writers] == [None, None]
    assert sorted(tmp_path.iterdir()) == [plain, path]
