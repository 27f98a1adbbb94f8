"""A bucket in memory behind `gs://`, for tests of what must run on one.

It is registered where `etils.epath` looks the client up, so that nothing of epath is
replaced. Like a real one it takes whole objects: opening one to append is refused.
"""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Objects in memory, one store for the process."""

    protocol = ("gs", "gcs", "s3")
    store = {}
    pseudo_dirs = [""]

    def __init__(self, finalize_on_close=False, **options):
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).split("://", 1)[-1])

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("a bucket has no appending")
        return super()._open(path, mode, **options)


def install():
    """Serves ``gs://`` from an empty memory."""
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
