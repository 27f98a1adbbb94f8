"""The front door from Python: `fit` trains a method, `sample` draws from its student.

teacher = distilljax.fit("flow_matching", networks=net, source=digits())
student = distilljax.fit("scm", networks=net, source=digits(), teacher=teacher)
x = distilljax.sample(student, steps=2, labels=[0, 1, 2])
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from distilljax import generation, methods, promotion
from distilljax._version import __version__
from distilljax.binding import Network
from distilljax.diagnosis import Diagnosis
from distilljax.evaluation import image_grid, sample_files, save_png
from distilljax.method import Method
from distilljax.training import distributed
from distilljax.training.config import TrainConfig
from distilljax.training.export import load_params, save_params
from distilljax.training.loop import Hooks, TrainResult, View, train
from distilljax.training.roles import network_of
from distilljax.training.versions import read_record

if TYPE_CHECKING:
    from distilljax import cards


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A trained method.

    Attributes:
      method: the method.
      network: network of its student.
      params: the student's parameters (the evaluation EMA where one is kept).
      sample_shape: shape of one sample.
      num_classes: labels are ``0 .. num_classes - 1``; None without labels.
      conditional: whether it was trained with conditions that are no labels.
      result: how training went; None for a run read from its folder.
      folder: run folder, or None.
      images: whether samples are images in [-1, 1]; None where only their shape says
        so.
    """

    method: Method
    network: Network
    params: Any
    sample_shape: tuple[int, ...]
    num_classes: int | None = None
    conditional: bool = False
    result: TrainResult | None = None
    folder: epath.Path | None = None
    images: bool | None = None


@promotion.usual()
def fit(
    method: Method | str,
    *,
    networks: Network | Mapping[str, Network],
    source: Any,
    teacher: Fitted | Any = None,
    params: Mapping[str, Any] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    folder: str | os.PathLike | None = None,
    card: Mapping[str, Any] | None = None,
    hooks: Hooks | None = None,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    fresh: bool = False,
) -> Fitted:
    """Trains a method, or continues the run in a folder.

    Args:
      method: a `Method`, or the id of a registered one under its defaults.
      networks: one network for every role (the ``backbone``), or networks by key:
        ``backbone``, ``discriminator``, ... or a role's own name.
      source: a data source, see `distilljax.data`.
      teacher: a fitted teacher, or its parameters.
      params: parameters of further roles that want theirs given, by role.
      config: a `TrainConfig` or a mapping for it; default its defaults.
      folder: run folder for checkpoints, metrics, sample grids and parameters; a run
        found there is continued. None keeps nothing.
      card: what else determines the run, as JSON values; kept in ``config.json``.
      hooks: see `training.loop.Hooks`; by default a `diagnosis.Diagnosis` every
        ``diagnose_every`` cycles, and sample grids every ``sample_every``, for image
        sources with a folder whose students need nothing but noise and labels.
      progress: whether to show a bar.
      profile: first and last cycle of a profiler trace; see `training.train`.
      fresh: removes the run that is in the folder and begins again.

    Returns:
      The fitted method.

    Raises:
      ValueError: on input that does not fit; says what was expected and what came.
    """
    if isinstance(method, str):
        method = methods.build(method)
    if isinstance(networks, Network):
        networks = {"backbone": networks}
    given = dict(params or {})
    if teacher is not None:
        given["teacher"] = teacher.params if isinstance(teacher, Fitted) else teacher
    settings = TrainConfig.of(config or {}, roles=method.roles)
    role = method.sampling.role
    network = network_of(method.roles, role, networks)
    for name in ("sample_shape", "num_classes"):
        if not hasattr(source, name):
            raise ValueError(
                f"source must be a data source, got {type(source).__name__} without "
                f"{name}; make one of arrays with distilljax.data.arrays(x0, cond)"
            )
    shape = tuple(source.sample_shape)
    classes, conditional = _conditions(source, settings)
    where = None if folder is None else epath.Path(folder)
    if hooks is None:
        hooks = Hooks()
        if settings.diagnose_every:
            hooks = Hooks(diagnose=Diagnosis(method, networks, source))
        free = not conditional and method.sampling.start is None
        if where is not None and settings.sample_every and len(shape) == 3 and free:
            grid = _grid_hook(method, network, shape, classes, where)
            hooks = hooks._replace(sample=grid)
    result = train(
        method,
        networks,
        given,
        source,
        settings,
        where,
        hooks=hooks,
        card=card,
        progress=progress,
        profile=profile,
        fresh=fresh,
    )
    if where is not None:
        # The sampled role may be derived, from adapters and their base.
        for name in dict.fromkeys((*method.trained, role)):
            with distributed.together(f"write the parameters of {name}"):
                save_params(where / "params" / f"{name}.npz", result.params(name))
    return Fitted(
        method,
        network,
        result.params(role),
        shape,
        classes,
        conditional,
        result,
        where,
        getattr(source, "images", None),
    )


@promotion.usual()
def fit_card(
    card: cards.Experiment | Mapping[str, Any],
    *,
    teacher: Fitted | Any = None,
    folder: str | os.PathLike | None = None,
    hooks: Hooks | None = None,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    fresh: bool = False,
) -> Fitted:
    """Trains a card, or continues its run in a folder, from which `load` reads it.

    Args:
      card: of `cards.load`, or expanded.
      teacher: see `fit`; default the run that the card names, where the method has one.
      folder: see `fit`.
      hooks: see `fit`.
      progress: see `fit`.
      profile: see `fit`.
      fresh: see `fit`.

    Returns:
      The fitted method.

    Raises:
      ValueError: see `fit`.
    """
    from distilljax import cards

    found = card if isinstance(card, cards.Experiment) else cards.expand(card)
    if teacher is None and found.teacher and found.method.taught:
        teacher = load(found.teacher)
    return fit(
        found.method,
        networks=found.networks,
        source=found.source,
        teacher=teacher,
        config=found.train,
        folder=folder,
        card={"card": found.config},
        hooks=hooks,
        progress=progress,
        profile=profile,
        fresh=fresh,
    )


def _conditions(source: Any, settings: TrainConfig) -> tuple[int | None, bool]:
    """The number of classes that a student is told, and whether it is told others."""
    if settings.ignore_cond:
        return None, False
    fields = getattr(source, "fields", ())
    return source.num_classes, source.num_classes is None and "cond" in fields


def _grid_hook(
    method: Method,
    network: Network,
    shape: tuple[int, ...],
    classes: int | None,
    folder: epath.Path,
):
    """Writes a grid of a fixed seed, one label a row."""
    steps = method.sampling.steps
    sampler = jax.jit(generation.student_sampler(method, network, steps))
    columns = 8
    labels = None
    if classes is not None:
        labels = np.repeat(np.arange(min(classes, 10)), columns)
    count = 64 if labels is None else len(labels)
    # On the host, from where every process puts it next to its parameters.
    eps = np.asarray(generation.initial_noise(0, 0, count, shape))

    def write(view: View) -> dict[str, np.ndarray]:
        x = sampler(view.params(method.sampling.role), eps, labels, jax.random.key(0))
        grid = image_grid(np.clip(distributed.whole(x), -1.0, 1.0), columns, 4)
        if distributed.is_first():
            save_png(folder / "samples" / f"cycle_{view.step:06d}.png", grid)
        return {"samples": grid}

    return write


@promotion.usual()
def load(folder: str | os.PathLike) -> Fitted:
    """A finished run from its folder.

    Raises:
      ValueError: if the folder holds no run of a card, or an unfinished one.
    """
    from distilljax import cards

    folder = epath.Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json in it")
    record = read_record(path)
    if "card" not in record:
        raise ValueError(
            f"the run in {folder} was not started from a card, so its network is not "
            "known; use load_params on the files in params/ with your own network"
        )
    cards.check_sections(record["card"], f"the card in {path}")
    # Parameters are in the folder: the data need not be where it was.
    known = record["card"]["source"].get("num_classes") is not None
    outline = cards.outline(record["card"]) if known else None
    found = cards.expand(record["card"], source=outline)
    role = found.method.sampling.role
    return Fitted(
        found.method,
        network_of(found.method.roles, role, found.networks),
        load_params(folder / "params" / f"{role}.npz"),
        tuple(found.source.sample_shape),
        *_conditions(found.source, found.train),
        None,
        folder,
        record["card"]["source"].get("images"),
    )


@promotion.usual()
def sample(
    student: Fitted | str | os.PathLike,
    *,
    steps: int = 1,
    count: int | None = None,
    labels: Any = None,
    cond: Any = None,
    start: Any = None,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int = 512,
    teacher: Fitted | str | os.PathLike | None = None,
    teacher_steps: int = 1,
    teacher_nfe: int | None = None,
    teacher_guidance: float = 1.0,
    out: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Samples a student at any number of steps, on its method's grid.

    Args:
      student: what `fit` returned, or the folder of a finished run.
      steps: steps of the grid, at least 1; each is one network evaluation.
      count: number of samples; default one per label, condition or start. Without
        labels, a class-conditional student gets every class in turn.
      labels: one class label per sample.
      cond: conditions of another kind, one per sample, as the field ``cond`` of the
        student's source holds them.
      start: what samples start from in place of noise, one per sample, for methods that
        say so (`Sampling.start`).
      guidance: scale that a student is told which was trained for several (``embed``);
        default the middle of those.
      seed: of noise and re-noising.
      batch_size: samples per program call.
      teacher: takes the first steps in the student's place; see `generation.Lead`.
      teacher_steps: how many, less than ``steps``.
      teacher_nfe: its evaluations for them, without guidance; default 2 a step, with
        Heun's method.
      teacher_guidance: its scale ``w``; 1 is off, else its evaluations double.
      out: writes the samples there, see `evaluation.sample_files`: ``.npz``, ``.npy``,
        a picture ``.png`` or ``.jpg`` (the arrays go into the ``.npz`` beside it) or a
        folder with one picture a sample. An interrupted call continues.
      progress: shows a bar; default on a terminal.

    Returns:
      Samples ``[count, *sample_shape]``, float32, not clipped.

    Raises:
      ValueError: if conditions or starts are missing, or given to a student that takes
        none, and on lengths or labels that do not fit.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    fitted = student if isinstance(student, Fitted) else load(student)
    to = None if out is None else sample_files.target(out, fitted.sample_shape)
    _check_inputs(fitted, cond, start)
    lead, params = None, fitted.params
    if teacher is not None:
        first = teacher if isinstance(teacher, Fitted) else load(teacher)
        lead = lead_of(fitted, first, teacher_steps, teacher_nfe, teacher_guidance)
        params = (fitted.params, first.params)
    elif teacher_steps != 1 or teacher_nfe is not None or teacher_guidance != 1:
        raise ValueError(
            "teacher_steps, teacher_nfe and teacher_guidance are those of a teacher "
            "that takes the first steps: pass teacher="
        )
    if labels is None and fitted.num_classes is not None:
        if count is None:
            count = 10 * fitted.num_classes
        labels = np.arange(count) % fitted.num_classes
    made = {"steps": steps, "seed": seed, "nfe": spent(steps, lead)}
    made |= {} if guidance is None else {"guidance": guidance}
    return generation.generate(
        _sampler(fitted, steps, lead, guidance),
        params,
        sample_shape=fitted.sample_shape,
        count=count,
        labels=labels,
        cond=cond,
        start=start,
        seed=seed,
        batch_size=batch_size,
        num_classes=fitted.num_classes,
        resume=None if out is None else sample_files.parts_of(out),
        tag=f"{fitted.method.name} in {steps}, {spent(steps, lead)}"
        + ("" if guidance is None else f", guidance {guidance}"),
        save=None if to is None else saving(fitted, to, labels, made),
        progress=progress,
    )


# The newest samplers, so that an equal call compiles nothing. They are kept with what
# they are of, whose identities are the keys.
_SAMPLERS: dict[Any, Any] = {}
_KEPT_SAMPLERS = 16


def _sampler(
    fitted: Fitted, steps: int, lead: generation.Lead | None, guidance: float | None
) -> generation.Sampler:
    """The compiled sampler of a student, one for equal calls."""
    of = (fitted.method, fitted.network)
    key = (*map(id, of), steps, lead, guidance)
    if key not in _SAMPLERS:
        sampler = generation.student_sampler(*of, steps, lead=lead, guidance=guidance)
        while len(_SAMPLERS) >= _KEPT_SAMPLERS:
            _SAMPLERS.pop(next(iter(_SAMPLERS)))
        _SAMPLERS[key] = (of, jax.jit(sampler))
    return _SAMPLERS[key][1]


def lead_of(
    student: Fitted,
    teacher: Fitted,
    steps: int = 1,
    nfe: int | None = None,
    guidance: float = 1.0,
) -> generation.Lead:
    """A fitted teacher that takes a student's first steps.

    Raises:
      ValueError: if the two were not trained on samples of one shape and labels.
    """
    for name in ("sample_shape", "num_classes"):
        own, other = getattr(student, name), getattr(teacher, name)
        if own != other:
            raise ValueError(
                f"teacher and student must be of the same data: {name} of the student "
                f"is {own}, of the teacher {other}"
            )
    nfe = 2 * steps if nfe is None else nfe
    return generation.Lead(teacher.network, steps, nfe, guidance=guidance)


def spent(steps: int, lead: generation.Lead | None = None) -> str:
    """What a sample costs in words, ``"NFE 5 (teacher 2, student 3)"``."""
    if lead is None:
        return f"NFE {steps}"
    ours = steps - lead.steps
    return (
        f"NFE {lead.evaluations + ours} (teacher {lead.evaluations}, student {ours}"
        f"{f', guidance {lead.guidance:g}' if lead.guidance != 1 else ''})"
    )


def _check_inputs(fitted: Fitted, cond: Any, start: Any) -> None:
    name, field = fitted.method.name, fitted.method.sampling.start
    if fitted.conditional and cond is None:
        raise ValueError(
            f"this student ({name}) was trained with conditions that are no labels: "
            "pass cond= (--data=FILE.npz on the command line), a row for each sample, "
            "as the field 'cond' of its source"
        )
    if not fitted.conditional and cond is not None:
        raise ValueError(
            f"this student ({name}) takes "
            + ("no condition" if fitted.num_classes is None else "labels=")
            + ", got cond="
        )
    if field is not None and start is None:
        raise ValueError(
            f"this student ({name}) starts from the field {field!r} of its source and "
            "not from noise: pass start= (--data=FILE.npz on the command line), a row "
            "for each sample"
        )
    if field is None and start is not None:
        raise ValueError(f"this student ({name}) starts from noise, got start=")


def saving(
    fitted: Fitted, to: sample_files.Target, labels: Any, made: Mapping[str, Any]
) -> Callable[[np.ndarray], None]:
    """Writes samples of a fitted student and what they are.

    Args:
      fitted: the student.
      to: where.
      labels: of the samples, or None.
      made: what else their record says, JSON values.
    """
    record = {
        "value_range": sample_files.range_of(fitted.sample_shape, fitted.images),
        "method": fitted.method.name,
        "run": None if fitted.folder is None else os.fspath(fitted.folder),
        "distilljax": __version__,
        **made,
    }
    return lambda x: sample_files.write(to, x, labels, record)


def save_samples(path: str | os.PathLike, x: np.ndarray, labels: Any = None) -> None:
    """Writes ``x`` (and ``label``), and images to a grid; see `sample_files.target`."""
    x = np.asarray(x)
    sample_files.write(sample_files.target(path, x.shape[1:]), x, labels)
