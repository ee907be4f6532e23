"""What is written, read and cached; what damage does to it is in test_every_kind.py."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from maw_gym import files
from maw_gym.errors import DamagedFileError, InputError

TENSORS = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(0, 3)}
WRITERS = {"file": files.written_whole, "folder": lambda path: files.written_folder(path, "mark")}


@pytest.fixture
def path(tmp_path):
    files.write(tmp_path / "file.safetensors", TENSORS, "thing", {"x": [1, "é"]})
    return tmp_path / "file.safetensors"


def failing(number):
    """Stands for a function of the system, such as os.fsync of a full disk."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_tensors_come_back_as_they_look(tmp_path):
    path = tmp_path / "new" / "file.safetensors"
    whole = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    given = {"pair": (1, 2), "numbers": {10: "a", 2: "é"}, "x": 1e-310}
    tensors = {"whole": whole, "turned": whole.T, "none": torch.zeros(0, 3)}
    files.write(path, tensors, "thing", given)
    settings, found = files.read(path, "thing")
    assert settings == {"pair": [1, 2], "numbers": {"10": "a", "2": "é"}, "x": 1e-310}
    assert found["whole"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert found["turned"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert found["none"].shape == (0, 3)
    files.write(path, {"part": whole[1]}, "thing", {})
    assert files.read(path, "thing").tensors["part"].tolist() == [3.0, 4.0, 5.0]


def test_equal_contents_make_equal_files_whose_checksum_covers_all(path):
    files.write(path.with_name("again"), dict(reversed(TENSORS.items())), "thing", {"x": [1, "é"]})
    data = path.read_bytes()
    assert path.with_name("again").read_bytes() == data
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    digest = hashlib.sha256(b"a torch.float32 (2, 2);" + TENSORS["a"].numpy().tobytes())
    digest.update(b"b torch.float32 (0, 3);")
    assert files.fingerprint(TENSORS) == digest.hexdigest()
    covered = '{"format":1,"kind":"thing","settings":{"x":[1,"\\u00e9"]},"tensors":"'
    whole = hashlib.sha256(f'{covered}{digest.hexdigest()}"}}'.encode()).hexdigest()
    assert json.loads(header["__metadata__"]["maw_gym"]) == {
        "format": 1, "kind": "thing", "settings": {"x": [1, "é"]}, "checksum": whole,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tensor", "shape", "problem"),
    [
        (torch.ones(2), None, "is unknown"),
        (None, (1,), "is gone"),
        (torch.ones(2, 2), (4, 1), "has shape (2, 2), expected (4, 1)"),
        (torch.ones(2, 2), (4,), "has shape (2, 2), expected (4,)"),
        (torch.ones(0, 3), (None, 4), "has shape (0, 3), expected (None, 4)"),
        (torch.tensor([1.0, float("nan")]), (2,), "holds values that are not finite"),
        (torch.tensor([1.0, -float("inf")]), (2,), "holds values that are not finite"),
        (torch.ones(2).double(), (2,), "is torch.float64, expected torch.float32"),
    ],
)
def test_other_tensors_than_promised(tensor, shape, problem):
    tensors, shapes = ({} if it is None else {"a": it} for it in (tensor, shape))
    with pytest.raises(DamagedFileError) as caught:
        files.check_tensors(Path("file"), tensors, shapes)
    assert str(caught.value) == f"file: tensor 'a' {problem}"


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path, path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "folder"):
        with pytest.raises(InputError, match="is not a regular file; give the path of a thing"):
            files.read(place, "thing")
    with pytest.raises(InputError, match=r"no thing file '.*gone'; give the path of one"):
        files.read(tmp_path / "gone", "thing")
    with pytest.raises(InputError, match="has 3221225472 bytes, and a config at most 10000;"):
        files.check_readable(tmp_path / "large", "config", 10_000)

    save_file({"a": torch.ones(1)}, tmp_path / "of others")
    with pytest.raises(InputError, match=r"was not written by maw_gym; give another thing file$"):
        files.read(tmp_path / "of others", "thing")
    monkeypatch.setattr(Path, "open", failing(24))
    with pytest.raises(InputError, match="cannot be read: Too many open files") as caught:
        files.read(path, "thing")
    assert not isinstance(caught.value, DamagedFileError)


def write(kind, path, text, problem=None):
    with WRITERS[kind](path) as temporary:
        assert temporary.parent == path.parent
        place = temporary / "mark" if kind == "folder" else temporary
        place.write_text(text)
        if problem is not None:
            raise problem


def content(kind, path):
    return (path / "mark" if kind == "folder" else path).read_text()


@pytest.mark.parametrize("kind", WRITERS)
def test_an_old_one_stays_until_the_new_one_is_whole(kind, tmp_path, monkeypatch):
    path = tmp_path / "new" / "it"
    write(kind, path, "first")
    write(kind, path, "second")
    for problem in (RuntimeError(), KeyboardInterrupt(), FileNotFoundError(2, "", "/x")):
        with pytest.raises(type(problem)):  # the last one is of another file, read on the way
            write(kind, path, "third", problem)
    monkeypatch.setattr(os, "fsync", failing(28))
    with pytest.raises(InputError) as caught:
        write(kind, path, "third")
    assert str(caught.value) == (
        f"{path} cannot be written: No space left on device; make room for it or name another place"
    )
    assert content(kind, path) == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write("file", tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_folder_of_something_else_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files, no mark; give a new folder"):
        write("folder", tmp_path, "first")
    (tmp_path / "empty").mkdir()
    write("folder", tmp_path / "empty", "first")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())  # a system that exchanges nothing
    write("folder", tmp_path / "empty", "second")
    assert content("folder", tmp_path / "empty") == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


def test_a_manifest_looks_at_no_file_outside_its_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").write_text("mine")
    files.write_manifest(tmp_path, "thing", {})
    content = files.read_json(tmp_path / files.MANIFEST, "thing")
    content["files"] = {"../secret": content["files"]["secret"]}
    files.write_json(tmp_path / "folder" / files.MANIFEST, content, "thing")
    with pytest.raises(DamagedFileError, match=r"'../secret' is gone"):
        files.read_manifest(tmp_path / "folder", "thing")


@pytest.mark.parametrize(
    ("ours", "xdg", "home"),
    [
        ("~/somewhere", "/xdg", Path.home() / "somewhere"),
        ("", "/xdg", Path("/xdg/maw_gym")),
        ("", "", Path.home() / ".cache" / "maw_gym"),
    ],
)
def test_the_home_is_where_the_variables_say(ours, xdg, home, monkeypatch):
    monkeypatch.setenv("MAW_GYM_HOME", ours)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert files.cache_home() == home


def test_the_key_is_made_of_content():
    # sha256 of '{"a":[1,2],"b":"\\u00e9"}'
    assert files.content_key({"b": "é", "a": (1, 2)}) == "4f4995260c41bd0d"
    assert files.content_key({"a": [2, 1], "b": "é"}) != "4f4995260c41bd0d"


def read(path):
    text = path.read_text()
    if text == "damaged":
        raise DamagedFileError(f"{path} is damaged")
    if text == "foreign":
        raise InputError(f"{path} cannot be read: Permission denied")
    return text


def test_what_is_missing_or_damaged_is_built_and_kept(tmp_path, caplog):
    path = tmp_path / "folder" / "file"

    def found(build=lambda: "built"):
        return files.cached(path, build, lambda place, text: write("file", place, text), read)

    assert (found(), caplog.messages) == ("built", [])
    path.write_text("older")
    with files.locked(path):  # as if another process was building: what is there needs no lock
        assert found(pytest.fail) == "older"
    path.write_text("damaged")
    assert found() == "built"
    # Once without the lock and once under it.
    assert caplog.messages == [f"{path} is damaged; it is made anew"] * 2
    path.write_text("foreign")
    with pytest.raises(InputError, match="Permission denied"):
        found(pytest.fail)
    assert path.read_text() == "foreign"


def test_the_builder_holds_a_lock_that_ends_with_it(tmp_path):
    path = tmp_path / "folder" / "file"
    lock = FileLock(f"{path}.lock", timeout=0)
    with files.locked(path), pytest.raises(Timeout), lock:
        pass
    killed = "with locked(pathlib.Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)"
    code = f"import os, sys, pathlib; from maw_gym.files import locked\n{killed}"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    with lock:
        pass


@pytest.mark.parametrize("place", ["/dev/null/folder/file", "/proc/file"])
def test_a_place_that_cannot_be_written_is_named(place):
    with pytest.raises(InputError, match=f"^{place} cannot be written: "):
        write("file", Path(place), "")
    expected = f"^the cache {Path(place).parent} cannot be written: .*; set MAW_GYM_HOME to a "
    with pytest.raises(InputError, match=expected), files.locked(Path(place)):
        pass


def test_a_sweep_takes_what_the_dead_have_left_and_nothing_else(tmp_path):
    below = tmp_path / "checkpoints"
    with files.written_whole(below / "000000000128.safetensors") as left:
        pass
    left.touch()  # as after a kill
    pipe = below / ".pipe.x.writing"
    os.mkfifo(pipe)
    others = [tmp_path / ".config.json", tmp_path / "a.writing", below / ".x.writing.txt"]
    for path in (below / "000000000128.safetensors", *others):
        path.write_text("mine")
    files.sweep(tmp_path, "config.json")
    assert left.exists()
    files.sweep(tmp_path)
    files.sweep(tmp_path / "nowhere")
    assert not left.exists()
    assert not pipe.exists()
    assert all(path.exists() for path in others)
