import json
import os
import re
import subprocess
import sys

import pytest
from etils import epath

from distilljax.training import lock
from distilljax.training.lock import Lock

HOLD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, sys.argv[2].encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_one_at_a_time(tmp_path):
    folder = epath.Path(tmp_path / "run")
    first = Lock(folder)
    words = rf"run'.* in use by process {os.getpid()} on .* since .*another folder"
    with pytest.raises(ValueError, match=words):
        Lock(folder)
    first.close()
    first.close()
    second = Lock(folder)
    assert second.note == ""
    second.close()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert (folder / ".lock").read_text() == ""


@pytest.mark.parametrize("text", ["", '{"host": "a", "pro'])
def test_a_killed_holder_is_replaced_with_a_word(tmp_path, text):
    record = {"host": "there", "process": 123, "since": "monday"}
    text = text or json.dumps(record)
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock"), text]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    named = "another process" if text[-1] != "}" else "process 123 on there since mon"
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=re.escape(named)):
            Lock(epath.Path(tmp_path))
        holder.kill()
    taken = Lock(epath.Path(tmp_path))
    assert named in taken.note
    assert "killed" in taken.note
    taken.close()


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match="run' could not be written. A file lies where"):
        Lock(epath.Path(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_made_ends_in_an_error():
    with pytest.raises(OSError, match="/proc/run"):
        Lock(epath.Path("/proc/run"))


def test_a_bucket_has_no_lock(bucket):
    locks = [Lock(epath.Path(f"{bucket}/run")) for _ in range(2)]
    assert [one.note for one in locks] == ["", ""]
    for one in locks:
        one.close()
    assert not (epath.Path(bucket) / "run" / ".lock").exists()


def test_a_lock_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder removes the folder."""
    folder = epath.Path(tmp_path / "parts")
    first, opened = Lock(folder), lock._open

    def late(path):
        file = opened(path)
        first.remove()
        monkeypatch.undo()
        return file

    monkeypatch.setattr(lock, "_open", late)
    second = Lock(folder)
    with pytest.raises(ValueError, match="in use"):
        Lock(folder)
    (folder / "mine.txt").write_text("of somebody")
    second.remove()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
