"""One run at a time in a folder.

The lock is the operating system's (``flock``), which ends with the process that holds
it, whatever ended that. A file in a bucket cannot be locked, some network file
systems refuse, and Windows has no such lock: there nothing guards a folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time

from etils import epath

from distilljax.runtime import storage

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
        self.note, self._file, self._folder = "", -1, folder
        if not storage.is_local(folder) or os.name != "posix":
            return
        file = self._taken(folder)
        if file is None:
            return
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

    def _taken(self, folder: epath.Path) -> int | None:
        """The file, locked; None where the file system has no locks."""
        import fcntl

        while True:
            with storage.naming(folder):
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    file = _open(folder)
                except FileNotFoundError:
                    # The one before us has just removed the folder.
                    continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(file)
                os.close(file)
                if error.errno in _UNABLE:
                    return None
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise ValueError(
                    f"folder {str(folder)!r} is in use by {holder or 'another run'}; "
                    "wait until it ends, end it, or choose another folder. The lock is "
                    f"gone with the process that holds {NAME!r}: do not remove the file"
                ) from None
            if _is_at(file, folder / NAME):
                return file
            # Removed between the two calls: it guards nothing.
            os.close(file)

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

    def remove(self) -> None:
        """Lets go, and removes the file, and the folder if it is empty.

        For a folder that nobody needs after its holder; one who waits for the file
        notices that it is gone.
        """
        if self._file >= 0:
            (self._folder / NAME).unlink(missing_ok=True)
        self.close()
        # Others may have put something in, the next holder's file among it.
        if storage.is_local(self._folder):
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)


def _open(folder: epath.Path) -> int:
    try:
        # A link would lead to a file that is somebody's.
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(
            f"{str(folder / NAME)!r} is a symbolic link and is not followed; remove "
            "the link"
        ) from None


def _is_at(file: int, path: epath.Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


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
