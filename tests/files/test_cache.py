import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from maw_gym.files.cache import cache_home, content_key, one_builder, written_whole


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
    with pytest.raises(OSError, match="No space left"), written_whole(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_builder_holds_a_lock_that_ends_with_it(tmp_path):
    path = tmp_path / "folder" / "file"
    lock = FileLock(f"{path}.lock", timeout=0)
    with one_builder(path), pytest.raises(Timeout), FileLock(lock.lock_file, timeout=0):
        pass
    with lock:
        pass
    with pytest.raises(RuntimeError), one_builder(path):
        raise RuntimeError
    with lock:
        pass


def test_a_killed_builder_does_not_block_the_next(tmp_path):
    path = tmp_path / "file"
    code = (
        "import os, sys, pathlib; from maw_gym.files.cache import one_builder\n"
        "with one_builder(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    with FileLock(f"{path}.lock", timeout=0):
        pass
