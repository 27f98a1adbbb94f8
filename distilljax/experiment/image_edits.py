"""The front door of editing: `edit` fills, colours, enlarges, cleans or redraws images.

x = distilljax.edit(student, "inpaint", images, mask=mask, labels=labels, steps=8)

The tasks are those of `distilljax.editing`, run with a student's own network; a step is
one network evaluation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distilljax.core.method import Method
from distilljax.diffusion.paths import Path
from distilljax.diffusion.sampler import Hooks, sample
from distilljax.diffusion.times import AngleGrid
from distilljax.evaluation import sample_files
from distilljax.experiment.api import Fitted, load, saving
from distilljax.runtime import promotion, storage
from distilljax.runtime.errors import unknown
from distilljax.runtime.labels import asked
from distilljax.sampling import editing, generation

Array = jax.Array
Shape = tuple[int, ...]


class Request(NamedTuple):
    """What an edit's hooks are made of, inside the program.

    Attributes:
      images: what is observed, ``[B, ...]``.
      mask: ``[B, H, W, 1]``, not 0 in the hole; only for inpainting.
      t: first time of the sampler.
      path: path of the sampler.
      shape: of one result.
      clip: range of the data, or None.
    """

    images: Array
    mask: Array | None
    t: float
    path: Path
    shape: Shape
    clip: tuple[float, float] | None


class Task(NamedTuple):
    """One edit.

    Attributes:
      hooks: of the sampler.
      observed: shape of one sample -> shape of one observed image; -1 is any number.
      option: the argument of `edit` that it needs, or None.
      bounded: whether observed values lie in the range of the data.
    """

    hooks: Callable[[Request], Hooks]
    observed: Callable[[Shape], Shape] = lambda shape: shape
    option: str | None = None
    bounded: bool = True


def _inpaint(r: Request) -> Hooks:
    assert r.mask is not None
    return editing.inpaint(r.images, r.mask, clip=r.clip)


def _super_resolve(r: Request) -> Hooks:
    factor = r.shape[0] // r.images.shape[1]
    return editing.super_resolve(r.images, factor, clip=r.clip)


TASKS = {
    "inpaint": Task(_inpaint, option="mask"),
    "colourise": Task(
        lambda r: editing.colourise(r.images, clip=r.clip),
        observed=lambda shape: (*shape[:2], 1),
    ),
    "super_resolve": Task(_super_resolve, observed=lambda shape: (-1, -1, shape[2])),
    "denoise": Task(
        lambda r: editing.denoise(r.images, r.t, r.path),
        option="noise",
        bounded=False,
    ),
    "stroke": Task(lambda r: editing.stroke(r.images, r.t, r.path), option="strength"),
}


@promotion.usual()
def edit(
    student: Fitted | str | os.PathLike,
    task: str,
    images: Any,
    *,
    labels: Any = None,
    mask: Any = None,
    noise: float | None = None,
    strength: float | None = None,
    steps: int = 8,
    seed: int = 0,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    batch_size: int = 512,
    out: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Edits images with a few-step student, without training.

    | task | images | needs |
    |---|---|---|
    | ``inpaint`` | with a hole, ``[N, H, W, C]`` | ``mask`` |
    | ``colourise`` | grey, ``[N, H, W, 1]``, see `editing.grey` | |
    | ``super_resolve`` | small, ``[N, H/p, W/p, C]``, see `editing.shrink` | |
    | ``denoise`` | under white noise, ``[N, H, W, C]`` | ``noise`` |
    | ``stroke`` | rough, ``[N, H, W, C]`` | ``strength`` |

    Args:
      student: what `fit` returned, or the folder of a finished run.
      task: see the table.
      images: floating, in the units of the training data. Repeat an image for several
        results: every row has its own noise.
      labels: one class label per image, for a class-conditional student: integers,
        names of classes, or both.
      mask: not 0 in the hole, ``[H, W]`` or ``[N, H, W]``.
      noise: standard deviation of the noise in the images.
      strength: in (0, 1]; how far up the noise levels a rough image is sent, 1 forgets
        it.
      steps: network evaluations per image, at least 1.
      seed: of the start and the re-noising.
      clip: range of the data; None for latents.
      batch_size: images per program call.
      out: writes the images there, see `evaluation.sample_files`; an interrupted call
        continues.
      progress: shows a bar; default on a terminal.

    Returns:
      Images ``[N, *sample_shape]``, float32, not clipped: what was observed is kept
      exactly.

    Raises:
      ValueError: on an unknown task, images that do not fit, or an option that is
        missing or belongs to another task.
    """
    if task not in TASKS:
        raise ValueError(unknown("task", task, TASKS))
    fitted = student if isinstance(student, Fitted) else load(student)
    shape, method = fitted.sample_shape, fitted.method
    chosen = {"mask": mask, "noise": noise, "strength": strength}
    to = None if out is None else sample_files.target(out, shape)
    _check_options(task, chosen)
    observed = _checked(task, images, shape, clip)
    if labels is None and fitted.num_classes is not None:
        raise ValueError(
            f"labels must be given, one per image: the student has classes 0 .. "
            f"{fitted.num_classes - 1}"
        )
    labels = asked(labels, fitted)
    path = generation.sampling_path(method, fitted.network)
    times = _times(method, path, steps, noise, strength)
    given = {"images": observed}
    if mask is not None:
        given["mask"] = _checked_mask(mask, len(observed), shape)

    def run(params: Any, eps: Array, cond: Any, key: Array, given: Any) -> Array:
        hooks = TASKS[task].hooks(
            Request(given["images"], given.get("mask"), times[0], path, shape, clip)
        )
        x = sample(
            generation.student_map(method, fitted.network, params, cond),
            path.start(eps, t=times[0]),
            times,
            path=path,
            key=key,
            hooks=hooks,
        )
        assert isinstance(x, jax.Array)
        return x

    made = {"task": task, "steps": steps, "seed": seed}
    return generation.generate(
        run,
        fitted.params,
        sample_shape=shape,
        count=len(observed),
        labels=labels,
        given=given,
        seed=seed,
        batch_size=batch_size,
        num_classes=fitted.num_classes,
        resume=None if out is None else sample_files.parts_of(out),
        tag=f"{method.name} {task} {times} {clip}",
        save=None if to is None else saving(fitted, to, labels, made),
        progress=progress,
    )


def _times(
    method: Method,
    path: Path,
    steps: int,
    noise: float | None,
    strength: float | None,
) -> tuple[float, ...]:
    """Equal steps of the noise angle, from where the student or the task starts."""
    with jax.ensure_compile_time_eval():
        first = method.sampling.grid(steps, path)[0]
        end, top = (float(path.angle(jnp.asarray(t))) for t in (path.t_max, first))
    if noise is not None:
        if not 0.0 < math.atan(noise) <= top:
            # The angle of pure noise is a right one up to rounding.
            ends = top > math.pi / 2.0 - 1e-6
            highest = "inf)" if ends else f"{math.tan(top):.3g}]"
            raise ValueError(
                f"noise must lie in (0, {highest}, the levels of the student, got "
                f"{noise}"
            )
        top = math.atan(noise)
    if strength is not None:
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"strength must lie in (0, 1], got {strength}")
        top = strength * top
    return AngleGrid(min(top / end, 1.0))(steps, path)


def _check_options(task: str, chosen: Mapping[str, Any]) -> None:
    needed = TASKS[task].option
    for name, value in chosen.items():
        if name == needed and value is None:
            raise ValueError(f"task {task!r} needs {name}=")
        if name != needed and value is not None:
            owner = next(t for t in TASKS if TASKS[t].option == name)
            raise ValueError(f"{name} belongs to task {owner!r}, not to {task!r}")


def _checked(
    task: str, images: Any, shape: Shape, clip: tuple[float, float] | None
) -> np.ndarray:
    """Observed images as float32."""
    if len(shape) != 3:
        raise ValueError(f"edits are of images [H, W, C], the student makes {shape}")
    if task == "colourise" and shape[2] != 3:
        raise ValueError(f"colours need 3 channels, the student makes {shape}")
    x = np.asarray(images)
    if x.dtype.kind != "f":
        raise ValueError(
            f"images must be floating, got {x.dtype}; for 8-bit images pass "
            "x.astype('float32') / 127.5 - 1"
        )
    wanted = TASKS[task].observed(shape)
    fits = x.ndim == 4 and all(
        a in (-1, b) for a, b in zip(wanted, x.shape[1:], strict=True)
    )
    if not fits or not len(x):
        words = ", ".join("any" if a < 0 else str(a) for a in wanted)
        raise ValueError(
            f"images must be [N, {words}] for task {task!r} and a student of {shape}, "
            f"got {x.shape}; see the table of distilljax.edit"
        )
    if task == "super_resolve":
        factor, rest = divmod(shape[0], x.shape[1])
        if rest or factor < 2 or shape[1] != factor * x.shape[2]:
            raise ValueError(
                f"images must be smaller than {shape[:2]} by one whole factor, got "
                f"{x.shape[1:3]}"
            )
    low, high = float(x.min()), float(x.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("images must be finite, got NaN or infinite values")
    # Means of patches and luminance are rounded.
    bounds = clip if clip is not None and TASKS[task].bounded else (low, high)
    if low < bounds[0] - 1e-3 or high > bounds[1] + 1e-3:
        raise ValueError(
            f"images must lie in {list(bounds)}, got values from {low:g} to {high:g}; "
            "rescale them (x / 127.5 - 1 for 8 bit), or pass clip=None for latents"
        )
    return x.astype(np.float32)


def _checked_mask(mask: Any, count: int, shape: Shape) -> np.ndarray:
    """Masks ``[N, H, W, 1]``, bool."""
    found, (height, width, _) = np.asarray(mask), shape
    if found.shape in ((height, width), (count, height, width)):
        hole = np.broadcast_to(found != 0, (count, height, width))[..., None]
        return np.ascontiguousarray(hole)
    raise ValueError(
        f"mask must be [{height}, {width}] or [{count}, {height}, {width}], not 0 in "
        f"the hole, got shape {found.shape}"
    )


def read_images(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """``x``, and ``label`` and ``mask`` where there are, of an ``.npz`` file.

    Raises:
      ValueError: if the file is not there or holds no ``x``.
    """
    path = epath.Path(path)
    if not path.is_file() or path.suffix != ".npz":
        raise ValueError(
            f"no images at {path}: write x [N, H, W, C] (and label [N], mask) into an "
            ".npz file with np.savez"
        )
    found = storage.load_arrays(path, ("x", "label", "mask"))
    if "x" not in found:
        raise ValueError(f"{path} must hold 'x', it has {sorted(found) or 'neither'}")
    return found


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """A mask: an ``.npy`` file, or ``mask`` of an ``.npz`` file.

    Raises:
      ValueError: if the file is not there or holds no mask.
    """
    path = epath.Path(path)
    if not path.is_file() or path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"no mask at {path}: write one with np.save, not 0 in the hole"
        )
    found = storage.load_arrays(path)
    if path.suffix == ".npy":
        return np.asarray(found[path.stem])
    if "mask" not in found:
        raise ValueError(f"{path} must hold 'mask', it has {sorted(found)}")
    return found["mask"]
