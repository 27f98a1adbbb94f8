"""What files of samples and references hold, whatever their kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath
from numpy.typing import NDArray

from distilljax.evaluation import pictures, sample_files
from distilljax.runtime.storage import load_arrays


class Opened(NamedTuple):
    """Arrays of a file, and what it says of itself."""

    arrays: dict[str, NDArray]
    record: Mapping[str, Any]
    source: str


def open_file(path: epath.Path) -> Opened:
    """Opens an ``.npz``, ``.npy``, folder of pictures or picture; see `read_samples`.

    Raises:
      ValueError: if it is none of these, or is damaged.
    """
    source = str(path)
    if not path.is_dir() and pictures.is_picture(path) and path.is_file():
        name = pictures.samples_of_grid(path)
        if name and not (path.with_name(name)).is_file():
            raise ValueError(
                f"{path} is a picture of samples that lie in {name}, which is not "
                "beside it; pass that file"
            )
        if name:
            path = path.with_name(name)
            source = f"{path} (the samples of the picture {source!r})"
    if path.is_dir() or (pictures.is_picture(path) and path.is_file()):
        return Opened(*_open_pictures(path), source)
    if not path.is_file():
        raise ValueError(
            f"no file at {path}; samples are an .npz, an .npy, a folder of pictures or "
            "one picture"
        )
    found = load_arrays(path, mend="write samples with np.savez(path, x=images)")
    if path.suffix != ".npy":
        return Opened(found, sample_files.read_record(found), source)
    record, labels = sample_files.read_sidecar(path)
    arrays = {"x": found[path.stem]} | ({} if labels is None else {"label": labels})
    return Opened(arrays, record, source)


def _open_pictures(
    path: epath.Path,
) -> tuple[dict[str, NDArray], Mapping[str, Any]]:
    """Pictures, with the labels of their classes or of the arrays among them."""
    found = pictures.read_pictures(path)
    arrays: dict[str, NDArray] = {"x": found.rows}
    if found.labels is not None:
        return {**arrays, "label": found.labels}, {}
    inside = path / sample_files.INSIDE
    if not path.is_dir() or not inside.is_file():
        return arrays, {}
    known = load_arrays(inside, ("label", "record"))
    # 8-bit pictures have their own range.
    record = {**sample_files.read_record(known)}
    record.pop("value_range", None)
    if len(known.get("label", ())) == len(found.rows):
        arrays["label"] = known["label"]
    return arrays, record
