"""Files on local disk or in a bucket (``gs://``, ``s3://``): whole or absent.

Every path of a run folder or of data is an `epath.Path`. A bucket needs the client that
`etils.epath` asks for: ``gcsfs`` or TensorFlow for ``gs://``, ``s3fs`` for ``s3://``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from etils import epath

# Seconds between two writes of a growing file in a bucket, which takes whole files.
REWRITE_SECONDS = 30.0
# No space, over the quota, larger than a file may be.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path lies on a file system of this machine."""
    return "://" not in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path from the root; one in a bucket already is."""
    return epath.Path(os.path.abspath(path) if is_local(path) else path)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Names the file and the mend where a disk is full.

    Raises:
      OSError: with the number of the one that came.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: {os.fspath(path)!r} could not be written. What was "
            "saved before is intact; free space there or choose another folder, then "
            "make the same call again",
        ) from error


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[str]:
    """A local file to write, which takes its place when the block ends without error.

    On local disk it lies in the same folder and replaces ``path``; for a bucket it lies
    among the temporary files and is sent at the end. The folder is made if missing.

    Args:
      path: where the file shall lie.

    Yields:
      Path of the local file, not made yet.

    Raises:
      OSError: if it cannot be written; nothing is left behind.
    """
    path = epath.Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_local(path):
            with tempfile.TemporaryDirectory() as folder:
                local = os.path.join(folder, path.name)
                yield local
                epath.Path(local).copy(path, overwrite=True)
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield os.fspath(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file to write that takes its place when the block ends; see `whole`."""
    with whole(path) as local, open(local, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: str | os.PathLike, data: bytes | str) -> epath.Path:
    """Writes a file so that a reader sees the old content or the new, never a part.

    Args:
      path: where the file shall lie; its folder is made if it is missing.
      data: its content; text is written as UTF-8.

    Returns:
      The path.

    Raises:
      OSError: if it cannot be written; nothing is left behind.
    """
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return epath.Path(path)


def save_npz(
    path: str | os.PathLike, fields: dict[str, Any], *, compressed: bool = False
) -> None:
    """Writes arrays by name to an ``.npz``."""
    with replacing(path) as file:
        save = np.savez_compressed if compressed else np.savez
        save(file, allow_pickle=False, **fields)


class Appender:
    """A text file that grows by lines.

    On local disk every line is there at once. A bucket takes whole files alone, so that
    the file is written again every `REWRITE_SECONDS` and at the end.
    """

    def __init__(self, path: str | os.PathLike, text: str = ""):
        """Starts the file with ``text`` in place of what it held."""
        self._path = write_atomic(path, text)
        self._file = self._path.open("a") if is_local(path) else None
        self._text, self._unsaved, self._saved = [text], False, time.monotonic()

    def write(self, line: str) -> None:
        """Appends a line, which ends with a newline."""
        if self._file is not None:
            with naming(self._path):
                self._file.write(line)
                self._file.flush()
            return
        self._text.append(line)
        self._unsaved = True
        if time.monotonic() - self._saved >= REWRITE_SECONDS:
            self._rewrite()

    def _rewrite(self) -> None:
        self._text = ["".join(self._text)]
        write_atomic(self._path, self._text[0])
        self._unsaved, self._saved = False, time.monotonic()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        if self._file is not None:
            self._file.close()
        elif self._unsaved:
            self._rewrite()
