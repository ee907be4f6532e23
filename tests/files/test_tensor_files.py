import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maw_gym import files
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import (
    check_readable,
    check_tensors,
    fingerprint,
)

TENSORS = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(0, 3)}
SHAPES = {"a": (2, 2), "b": (None, 3)}


@pytest.fixture
def path(tmp_path):
    files.write(tmp_path / "file.safetensors", TENSORS, "thing", {"x": [1, "é"]})
    return tmp_path / "file.safetensors"


def refused(caught):
    """The message: one line that begins with the file."""
    message = str(caught.value)
    assert "\n" not in message
    assert "file.safetensors" in message
    return message


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_round_trip(path):
    settings, found = files.read(path, "thing")
    assert settings == {"x": [1, "é"]}
    check_tensors(path, found, SHAPES)
    assert set(found) == {"a", "b"}
    assert torch.equal(found["a"], TENSORS["a"])
    assert found["b"].shape == (0, 3)


def test_parameters_and_views_are_saved_as_they_look(tmp_path):
    path = tmp_path / "file.safetensors"
    whole = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    files.write(path, {"whole": whole, "turned": whole.T}, "thing", {})
    found = files.read(path, "thing").tensors
    assert found["whole"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert found["turned"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    files.write(path, {"part": whole[1]}, "thing", {})
    assert files.read(path, "thing").tensors["part"].tolist() == [3.0, 4.0, 5.0]


def test_equal_contents_make_equal_files(path, tmp_path):
    again = tmp_path / "again.safetensors"
    files.write(again, dict(reversed(TENSORS.items())), "thing", {"x": [1, "é"]})
    assert again.read_bytes() == path.read_bytes()


def test_a_failure_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"file\.safetensors cannot be written: No space left"):
        files.write(path, {"a": torch.ones(9)}, "thing", {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_another_kind(path):
    with pytest.raises(InputError) as caught:
        files.read(path, "router")
    assert refused(caught).endswith("holds a 'thing', not a 'router'")


def test_no_file(tmp_path):
    with pytest.raises(InputError) as caught:
        files.read(tmp_path / "file.safetensors", "router")
    assert refused(caught).startswith("no router file ")


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "file.safetensors").mkdir()
    with pytest.raises(InputError) as caught:
        files.read(tmp_path / "file.safetensors", "thing")
    refused(caught)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["pickle", "torch", "metadata"])
def test_nothing_in_a_file_is_run(tmp_path, form):
    path, target = tmp_path / "file.safetensors", tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(str(target)))
    if form == "pickle":
        path.write_bytes(bomb)
    elif form == "torch":
        torch.save({"a": Bomb(str(target))}, path)
    else:
        save_file({"a": torch.ones(1)}, path, {"maw_gym": bomb.decode("latin-1")})
    with pytest.raises(InputError) as caught:
        files.read(path, "thing")
    refused(caught)
    assert not target.exists()
    pickle.loads(bomb)  # it was a live one
    assert target.exists()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"maw_gym": "no JSON"},
        {"maw_gym": "[]"},
        {"maw_gym": "null"},
        {"maw_gym": '{"kind": "thing"}'},
        {"maw_gym": "[" * 100_000},
    ],
    ids=range(7),
)
def test_foreign_files(tmp_path, metadata):
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata)
    with pytest.raises(InputError) as caught:
        files.read(path, "thing")
    assert refused(caught).endswith("was not written by maw_gym; give another thing file")


@pytest.mark.parametrize("settings", ["[]", "1", "null", '"x"'])
def test_settings_must_be_an_object(tmp_path, settings):
    path = tmp_path / "file.safetensors"
    save_file({}, path, {"maw_gym": f'{{"kind": "thing", "settings": {settings}}}'})
    with pytest.raises(InputError) as caught:
        files.read(path, "thing")
    refused(caught)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": (2, 2)}, "tensor 'b' is unknown"),
        (SHAPES | {"c": (1,)}, "tensor 'c' is gone"),
        (SHAPES | {"a": (4, 1)}, "tensor 'a' has shape (2, 2), expected (4, 1)"),
        (SHAPES | {"a": (4,)}, "tensor 'a' has shape (2, 2), expected (4,)"),
        (SHAPES | {"b": (None, 4)}, "tensor 'b' has shape (0, 3), expected (None, 4)"),
        (SHAPES | {"b": (None,)}, "tensor 'b' has shape (0, 3), expected (None,)"),
    ],
)
def test_other_tensors_than_expected(path, shapes, message):
    with pytest.raises(DamagedFileError) as caught:
        check_tensors(path, files.read(path, "thing").tensors, shapes)
    assert refused(caught).endswith(message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path, value):
    path = tmp_path / "file.safetensors"
    files.write(path, {"a": torch.tensor([1.0, value])}, "thing", {})
    with pytest.raises(DamagedFileError) as caught:
        check_tensors(path, files.read(path, "thing").tensors, {"a": (2,)})
    assert refused(caught).endswith("tensor 'a' holds values that are not finite")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_another_type_than_float32(tmp_path, dtype):
    path = tmp_path / "file.safetensors"
    files.write(path, {"a": torch.ones(2).to(dtype)}, "thing", {})
    with pytest.raises(DamagedFileError) as caught:
        check_tensors(path, files.read(path, "thing").tensors, {"a": (2,)})
    assert refused(caught).endswith(f"tensor 'a' is {dtype}, expected torch.float32")


def test_the_fingerprint_covers_names_types_shapes_and_values():
    ones = torch.ones(2, 2)
    assert (
        fingerprint({"a": ones})
        == hashlib.sha256(b"a torch.float32 (2, 2);" + struct.pack("<4f", 1, 1, 1, 1)).hexdigest()
    )
    different = [
        {"a": ones},
        {"b": ones},
        {"a": ones.view(4)},
        {"a": ones.to(torch.int32)},
        {"a": ones, "b": ones},
        {"a": ones.index_put((torch.tensor([1]), torch.tensor([1])), torch.tensor(1 + 1e-7))},
        {"a": torch.zeros(0, 2)},
        {"a": torch.zeros(2, 0)},
        {},
    ]
    assert len({fingerprint(tensors) for tensors in different}) == len(different)
    assert fingerprint({"a": ones, "b": ones}) == fingerprint({"b": ones.clone(), "a": ones.T})


def content_of(path):
    """The JSON entry of a file, and all that stands around it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return json.loads(header["__metadata__"]["maw_gym"]), header, data[8 + length :]


def with_content(path, content):
    """Write the file anew with another JSON entry."""
    _, header, data = content_of(path)
    header["__metadata__"]["maw_gym"] = json.dumps(content)
    path.write_bytes(raw(header, data))


def test_the_checksum_covers_format_kind_settings_and_tensors(path):
    content, _, _ = content_of(path)
    assert content == {
        "format": 1,
        "kind": "thing",
        "settings": {"x": [1, "é"]},
        "checksum": content["checksum"],
    }
    covered = (
        '{"format":1,"kind":"thing","settings":{"x":[1,"\\u00e9"]},"tensors":"'
        + fingerprint(TENSORS)
        + '"}'
    )
    assert content["checksum"] == hashlib.sha256(covered.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"x": [2, "é"]}},
        {"settings": {}},
        {"kind": "router"},
        {"format": 0},
        {"format": None},
        {"checksum": None},
        {"more": 1},
    ],
    ids=str,
)
def test_whatever_is_changed_by_hand_is_noticed(path, change):
    content, _, _ = content_of(path)
    with_content(path, content | change)
    for kind in ("thing", "router"):
        with pytest.raises(DamagedFileError) as caught:
            files.read(path, kind)
        assert refused(caught).endswith("is damaged: its checksum is not that of its content")


def test_every_flipped_bit_is_refused_or_changes_nothing(path):
    content = path.read_bytes()
    before = files.read(path, "thing")
    refusals = 0
    for bit in range(8 * len(content)):
        data = bytearray(content)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = files.read(path, "thing")
        except InputError:
            refusals += 1
            continue
        assert found.settings == before.settings
        assert set(found.tensors) == set(before.tensors)
        assert all(torch.equal(found.tensors[name], before.tensors[name]) for name in TENSORS)
    assert refusals > 0.99 * 8 * len(content)


def test_settings_are_read_as_json_has_them(tmp_path):
    path = tmp_path / "file.safetensors"
    files.write(path, {}, "thing", {"pair": (1, 2), "numbers": {10: "a", 2: "b"}, "x": 1e-310})
    assert files.read(path, "thing").settings == {
        "pair": [1, 2],
        "numbers": {"10": "a", "2": "b"},
        "x": 1e-310,
    }


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "file.safetensors")  # reading it would wait for ever
    for path in (tmp_path / "file.safetensors", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file; give the path of"):
            files.read(path, "thing")


def test_sizes_are_checked_before_reading(tmp_path):
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    with pytest.raises(InputError) as caught:
        check_readable(path, "config", 10_000)
    assert str(caught.value) == (
        f"{path} has 3221225472 bytes, and a config at most 10000; give another"
    )


def test_a_file_that_cannot_be_opened_is_no_damage(path, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="cannot be read: Too many open files") as caught:
        files.read(path, "thing")
    assert not isinstance(caught.value, DamagedFileError)
