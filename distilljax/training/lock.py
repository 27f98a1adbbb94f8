"""One run at a time in a folder.

The lock is the operating system's (``flock``), which ends with the process that holds
it, whatever ended that. A file in a bucket cannot be locked, some network file
systems refuse, and Windows has no such lock: there nothing guards a folder.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time

from etils import epath

from distilljax import storage

NAME = ".lock"
_UNABLE = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


class Lock:
    """Holds a run folder until `close`.

    Attributes:
      note: what to tell people; empty unless the holder before was killed.
    """

    def __init__(self, folder: epath.Path):
        """Takes the lock of a folder, which is made if it is missing.

        The file ``.lock`` says who holds it: host, process and since when. One that a
        killed process left is taken over.

        Raises:
          ValueError: if another run holds it.
        """
        self.note, self._file = "", -1
        if not storage.is_local(folder) or os.name != "posix":
            return
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        try:
            # A link would lead to a file that is somebody's.
            file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise ValueError(
                f"{str(folder / NAME)!r} is a symbolic link and is not followed; "
                "remove the link"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            os.close(file)
            if error.errno in _UNABLE:
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise ValueError(
                f"folder {str(folder)!r} is in use by {holder or 'another run'}; "
                "wait until it ends, end it, or choose another folder. The lock is "
                f"gone with the process that holds {NAME!r}: do not remove the file"
            ) from None
        self._file = file
        left = _holder(file)
        if left:
            self.note = f"takes over the folder from {left}, which was killed"
        record = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._write(json.dumps(record))

    def _write(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        with storage.naming(NAME):
            os.pwrite(self._file, text.encode(), 0)

    def close(self) -> None:
        """Lets the next run in; the file stays, empty, since others may wait on it."""
        if self._file >= 0:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1


def _holder(file: int) -> str:
    """Who is named in a lock file, in words; empty if nobody."""
    text = os.pread(file, 4096, 0)
    if not text:
        return ""
    try:
        found = json.loads(text)
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
