"""Files on local disk or in a bucket (``gs://``, ``s3://``): whole or absent.

Every path of a run folder or of data is an `epath.Path`. A bucket needs the client that
`etils.epath` asks for: ``gcsfs`` or TensorFlow for ``gs://``, ``s3fs`` for ``s3://``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import socket
import struct
import tempfile
import time
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from etils import epath

# Seconds between two writes of a growing file in a bucket, which takes whole files.
REWRITE_SECONDS = 30.0
# What to do where a file or a folder could not be made.
_KEPT = "What was saved before is intact; "
_AGAIN = "choose another folder, then make the same call again"
_FULL = f"{_KEPT}free space there or {_AGAIN}"
_CLOSED = f"{_KEPT}make it writable or {_AGAIN}"
_MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CLOSED),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR),
        "A file lies where a folder is wanted; choose another place",
    ),
    errno.EISDIR: "A folder lies where a file is wanted; choose another name",
}


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path lies on a file system of this machine."""
    return "://" not in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path from the root; one in a bucket already is."""
    return epath.Path(os.path.abspath(path) if is_local(path) else path)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Names the file and the mend where it cannot be written.

    That is a full disk, a folder that is closed to writers, or a file and a folder in
    each other's place.

    Raises:
      OSError: with the number of the one that came.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDS:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: {os.fspath(path)!r} could not be written. "
            f"{_MENDS[error.errno]}",
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
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = path.with_name(_draft(path.name))
        try:
            yield os.fspath(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _draft(name: str) -> str:
    """A name beside ``name`` that no other writer has, at most as long as names may be.

    The number of the process is not enough: threads share it, and so do processes of
    machines that share a folder. Host and name are digests, whatever their length.
    """
    known, host = (
        hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
        for text, size in ((name, 8), (socket.gethostname(), 4))
    )
    return f".{known}.{host}.{os.getpid()}.{uuid.uuid4().hex[:12]}.tmp"


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
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with replacing(path) as file, zipfile.ZipFile(file, "w", how) as archive:
        # np.savez takes some names, such as "file", for arguments of its own.
        for name, value in fields.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                array = np.asanyarray(value)
                np.lib.format.write_array(entry, array, allow_pickle=False)


# What numpy, zipfile and zlib raise on files that are damaged or made to harm.
_DAMAGE = (
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_arrays(
    path: str | os.PathLike,
    names: Sequence[str] | None = None,
    *,
    mend: str = "write it again",
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, or the one of an ``.npy`` under the file's own stem.

    An ``.npy`` on local disk is memory-mapped. Nothing of a file is executed.

    Args:
      path: the file.
      names: arrays to read, those of them that the file has; None reads all.
      mend: what to do about a damaged file, for the message.

    Raises:
      ValueError: on a file that is damaged, names it; on an array of Python objects,
        names that.
      OSError: where the file cannot be read now, which says nothing about its content.
    """
    path = epath.Path(path)
    found, name = {}, path.name
    try:
        if path.suffix == ".npy":
            mapped = {"mmap_mode": "r"} if is_local(path) else {}
            source = os.fspath(path) if mapped else io.BytesIO(path.read_bytes())
            return {path.stem: np.load(source, **mapped)}
        with path.open("rb") as file, np.load(file) as archive:
            for name in archive.files:
                if names is None or name in names:
                    found[name] = archive[name]
    except _DAMAGE as error:
        if "allow_pickle" in str(error) and "object array" in str(error).lower():
            raise ValueError(
                f"{path}: {name!r} is an array of Python objects, which is not read, "
                "since it could run code; save numbers (texts as integer labels or "
                "embeddings), or leave it out"
            ) from error
        raise ValueError(f"{path} is damaged ({name}: {error}); {mend}") from error
    return found


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
