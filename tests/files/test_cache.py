import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import (
    cache_home,
    cached,
    content_key,
    locked,
    sweep,
    written_folder,
    written_whole,
)


def test_the_home_is_where_the_variables_say(monkeypatch):
    monkeypatch.setenv("MAW_GYM_HOME", "~/somewhere")
    assert cache_home() == Path.home() / "somewhere"
    monkeypatch.setenv("MAW_GYM_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_home() == Path("/xdg/maw_gym")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "maw_gym"


def test_the_key_is_made_of_content():
    # sha256 of '{"a":[1,2],"b":"\\u00e9"}'
    assert content_key({"b": "é", "a": (1, 2)}) == "4f4995260c41bd0d"
    assert content_key({"a": [1, 2], "b": "é"}) == "4f4995260c41bd0d"
    assert content_key({"a": [1, 2], "b": "e"}) != "4f4995260c41bd0d"
    assert content_key({"a": [2, 1], "b": "é"}) != "4f4995260c41bd0d"


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with written_whole(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "file") as temporary:
            temporary.write_text("")
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, problem):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with written_whole(path) as temporary:
            temporary.write_text("new")
            raise problem

    with pytest.raises(problem):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught, written_whole(path) as temporary:
        temporary.write_text("new")
    assert str(caught.value) == (
        f"{path} cannot be written: No space left on device; make room for it or name another place"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_builder_holds_a_lock_that_ends_with_it(tmp_path):
    path = tmp_path / "folder" / "file"
    lock = FileLock(f"{path}.lock", timeout=0)
    with locked(path), pytest.raises(Timeout), FileLock(lock.lock_file, timeout=0):
        pass
    with lock:
        pass
    with pytest.raises(RuntimeError), locked(path):
        raise RuntimeError
    with lock:
        pass


def test_a_killed_builder_does_not_block_the_next(tmp_path):
    path = tmp_path / "file"
    code = (
        "import os, sys, pathlib; from maw_gym.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    with FileLock(f"{path}.lock", timeout=0):
        pass


@pytest.mark.parametrize("place", ["/dev/null/folder/file", "/proc/file"])
def test_a_place_that_cannot_be_written_is_named(place):
    with pytest.raises(InputError) as caught, written_whole(Path(place)):
        pass
    assert str(caught.value).startswith(f"{place} cannot be written: ")
    with pytest.raises(InputError) as caught, locked(Path(place)):
        pass
    message = str(caught.value)
    assert message.startswith(f"the cache {Path(place).parent} cannot be written: ")
    assert message.endswith("; set MAW_GYM_HOME to a folder that can")


def test_an_error_of_another_file_is_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "file"):
        (tmp_path / "another").read_text()
    assert list(tmp_path.iterdir()) == []


def test_unknown_home_folders_are_said_in_one_line(monkeypatch):
    monkeypatch.setenv("MAW_GYM_HOME", "~nosuchuser/x")
    with pytest.raises(InputError) as caught:
        cache_home()
    assert str(caught.value) == (
        "no home folder is known for '~nosuchuser/x'; give the whole path of the cache in"
        " MAW_GYM_HOME"
    )


def read(path):
    text = path.read_text()
    if text == "damaged":
        raise DamagedFileError(f"{path} is damaged")
    return text


def test_what_is_missing_or_damaged_is_built_and_kept(tmp_path, caplog):
    path = tmp_path / "folder" / "file"

    def save(path, content):
        with written_whole(path) as temporary:
            temporary.write_text(content)

    def found():
        return cached(path, lambda: "built", save, read)

    assert found() == "built"
    assert caplog.messages == []
    path.write_text("older")
    assert found() == "older"
    path.write_text("damaged")
    assert found() == "built"
    # Once without the lock and once under it.
    assert caplog.messages == [f"{path} is damaged; it is made anew"] * 2
    assert path.read_text() == "built"


def test_what_cannot_be_read_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("whole")

    def refuse(path):
        raise InputError(f"{path} cannot be read: Permission denied")

    with pytest.raises(InputError, match="Permission denied"):
        cached(path, pytest.fail, pytest.fail, refuse)
    assert path.read_text() == "whole"


def test_what_is_there_is_read_without_a_lock(tmp_path):
    path = tmp_path / "file"
    path.write_text("whole")
    before = list(tmp_path.iterdir())
    with locked(path):  # as if another process was building
        assert cached(path, pytest.fail, pytest.fail, read) == "whole"
    path.with_name("file.lock").unlink()
    assert cached(path, pytest.fail, pytest.fail, read) == "whole"
    assert list(tmp_path.iterdir()) == before


KILLED = """
import os, sys, pathlib
from maw_gym.files import written_whole
with written_whole(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_sweep_takes_what_the_dead_have_left_and_nothing_else(tmp_path):
    below = tmp_path / "checkpoints"
    below.mkdir()
    for path in (tmp_path / "metrics.json", below / "000000000128.safetensors"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
        assert done.returncode == -9
    left = sorted(path.name.rsplit(".", 2)[0] for path in tmp_path.rglob(".*"))
    assert left == [".000000000128.safetensors", ".metrics.json"]
    others = [tmp_path / ".config.json", tmp_path / "a.writing", below / ".x.writing.txt"]
    for path in others:
        path.write_text("mine")
    sweep(tmp_path, "config.json")
    assert len(list(tmp_path.rglob("*.*"))) == 5
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*.*")) == sorted(others)


def test_a_sweep_of_no_folder_finds_nothing(tmp_path):
    sweep(tmp_path / "nowhere")


def write_folder(folder, content, problem=None):
    with written_folder(folder, "mark") as temporary:
        (temporary / "mark").write_text(content)
        (temporary / content).write_text(content)
        if problem is not None:
            raise problem


def test_a_folder_is_exchanged_whole(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_folder(folder, "first")
    write_folder(folder, "second")
    assert sorted(path.name for path in folder.iterdir()) == ["mark", "second"]
    for problem in (RuntimeError(), KeyboardInterrupt()):
        with pytest.raises(type(problem)):
            write_folder(folder, "third", problem)
    with pytest.raises(InputError, match="folder cannot be written: No space left"):
        write_folder(folder, "third", OSError(28, "No space left on device"))
    assert (folder / "mark").read_text() == "second"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files, no mark; give a new folder"):
        write_folder(tmp_path, "first")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", "first")
    assert (tmp_path / "empty" / "mark").read_text() == "first"


def test_without_an_exchange_of_the_system_folders_are_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    write_folder(tmp_path / "folder", "first")
    write_folder(tmp_path / "folder", "second")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["mark", "second"]
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
