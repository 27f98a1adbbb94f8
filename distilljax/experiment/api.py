"""The front door from Python: `fit` trains a method, `sample` draws from its student.

teacher = distilljax.fit("flow_matching", networks=net, source=digits())
student = distilljax.fit("scm", networks=net, source=digits(), teacher=teacher)
x = distilljax.sample(student, steps=2, labels=[0, 1, 2])
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from distilljax import methods
from distilljax.__about__ import __version__
from distilljax.core.binding import Network
from distilljax.core.method import Method
from distilljax.evaluation import image_grid, sample_files, save_png
from distilljax.experiment import taught
from distilljax.experiment.diagnosis import Diagnosis
from distilljax.runtime import promotion
from distilljax.runtime.errors import check_whole
from distilljax.runtime.labels import asked, named, names_of
from distilljax.sampling import generation
from distilljax.training import distributed
from distilljax.training.config import TrainConfig
from distilljax.training.export import load_params as load_params
from distilljax.training.export import save_params
from distilljax.training.loop import Hooks, TrainResult, View, train
from distilljax.training.newest import settings_of, trained_params
from distilljax.training.roles import network_of
from distilljax.training.versions import read_record

if TYPE_CHECKING:
    from distilljax.experiment import cards


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
      class_names: of the labels, None where the data has none.
      cycle: of the checkpoint that the parameters are from; None for a finished run.
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
    class_names: tuple[str, ...] | None = None
    cycle: int | None = None


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
        ``backbone``, ``discriminator``, ... or a role's own name. A fitted teacher
        brings its own for the role ``teacher``.
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
    if isinstance(teacher, Fitted):
        networks = taught.with_teacher(method, networks, teacher, given, card)
        given["teacher"] = teacher.params
    elif teacher is not None:
        given["teacher"] = teacher
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
    names = None if classes is None else names_of(source)
    if names is None and isinstance(teacher, Fitted) and teacher.num_classes == classes:
        names = teacher.class_names
    if names is not None:
        card = {**(card or {}), "class_names": list(names)}
    if hooks is None:
        hooks = Hooks()
        if settings.diagnose_every:
            hooks = Hooks(diagnose=Diagnosis(method, networks, source))
        free = not conditional and method.sampling.start is None
        if where is not None and settings.sample_every and len(shape) == 3 and free:
            grid = _grid_hook(method, network, shape, classes, where, names)
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
        images=getattr(source, "images", None),
        class_names=names,
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
    from distilljax.experiment import cards

    found = card if isinstance(card, cards.Experiment) else cards.expand(card)
    if teacher is None and found.teacher and found.method.taught:
        teacher = load(found.teacher)
    return fit(
        found.method,
        networks=found.networks,
        source=found.source,
        teacher=teacher,
        params=found.params,
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
    names: Sequence[str] | None = None,
):
    """Writes a grid of a fixed seed, one label a row under its name."""
    steps = method.sampling.steps
    sampler = jax.jit(generation.student_sampler(method, network, steps))
    columns = 8
    labels = None
    if classes is not None:
        labels = np.repeat(np.arange(min(classes, 10)), columns)
    count = 64 if labels is None else len(labels)
    captions = named(labels, names)
    # On the host, from where every process puts it next to its parameters.
    eps = np.asarray(generation.initial_noise(0, 0, count, shape))

    def write(view: View) -> dict[str, np.ndarray]:
        x = sampler(view.params(method.sampling.role), eps, labels, jax.random.key(0))
        shown = np.clip(distributed.whole(x), -1.0, 1.0)
        grid = image_grid(shown, columns, 4, captions=captions)
        if distributed.is_first():
            save_png(folder / "samples" / f"cycle_{view.step:06d}.png", grid)
        return {"samples": grid}

    return write


@promotion.usual()
def load(
    folder: str | os.PathLike,
    *,
    method: Method | None = None,
    networks: Network | Mapping[str, Network] | None = None,
    source: Any = None,
) -> Fitted:
    """A run from its folder, ready to be sampled.

    The parameters are those at its end, the evaluation EMA where one is kept. Of a run
    that is not finished they are those of its newest whole checkpoint, as if it had
    ended there; a line on stderr says of which cycle, and so does `Fitted.cycle`.

    Args:
      folder: run folder.
      method: for runs that were not started from a card, whose methods and networks
        are not written down: the method.
      networks: likewise, as for `fit`.
      source: likewise, or anything with its ``sample_shape`` and ``num_classes``.

    Returns:
      The run.

    Raises:
      ValueError: if the folder holds no run of a card and the three are not given, or
        neither parameters nor a checkpoint that can be read.
    """
    folder = epath.Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json in it")
    record = read_record(path)
    given: dict[str, Any] = {}
    if method is not None and networks is not None and source is not None:
        settings = settings_of(record, method)
        built = {"backbone": networks} if isinstance(networks, Network) else networks
    elif "card" not in record:
        raise ValueError(
            f"the run in {folder} was not started from a card, so its network is not "
            "known; pass method=, networks= and source= as to fit, or use load_params "
            "on the files in params/ with your own network"
        )
    else:
        found = _expanded(record["card"], path)
        method, built, source = found.method, found.networks, found.source
        settings = found.train
        if method.roles[method.sampling.role].derive is not None and found.teacher:
            # Adapters are on its parameters.
            given = {"teacher": lambda: load(found.teacher).params}
    role, shape = method.sampling.role, tuple(source.sample_shape)
    params, cycle = trained_params(folder, method, built, settings, shape, given)
    if cycle is not None:
        print(
            f"{folder}: not finished; parameters are those of its checkpoint of cycle "
            f"{cycle} of {settings.cycles}",
            file=sys.stderr,
        )
    names, images = record.get("class_names"), getattr(source, "images", None)
    if "card" in record and images is None:
        images = record["card"]["source"].get("images")
    return Fitted(
        method,
        network_of(method.roles, role, built),
        params,
        shape,
        *_conditions(source, settings),
        folder=folder,
        images=images,
        class_names=None if names is None else tuple(map(str, names)),
        cycle=cycle,
    )


def _expanded(card: Any, path: epath.Path) -> cards.Experiment:
    """The objects of a run's card, without its data where the card says its shape."""
    from distilljax.experiment import cards, given

    cards.check_sections(card, f"the card in {path}")
    # Parameters are in the folder: the data need not be where it was.
    known = card["source"].get("num_classes") is not None
    source = cards.outline(card) if known else None
    found = cards.expand(card, source=source, outside=False)
    role = found.method.sampling.role
    sections = card["networks"]
    own = sections.get(role) or sections.get(found.method.roles[role].network) or {}
    if given.is_given(own):
        raise ValueError(
            f"{path}: the network of role {role!r} is named by {own}, and a stored "
            "config is not trusted to run code; pass method=, networks= and source="
        )
    return found


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
      labels: one class label per sample: integers, names of classes where the data
        had some (those of class folders), or both.
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
    if count is not None and check_whole("count", count) < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    fitted = student if isinstance(student, Fitted) else load(student)
    to = None if out is None else sample_files.target(out, fitted.sample_shape)
    _check_inputs(fitted, cond, start)
    labels = asked(labels, fitted)
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
    names = fitted.class_names
    return lambda x: sample_files.write(to, x, labels, record, class_names=names)


def save_samples(
    path: str | os.PathLike,
    x: np.ndarray,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes ``x`` (and ``label``), and images to a grid; see `sample_files.target`."""
    x = np.asarray(x)
    to = sample_files.target(path, x.shape[1:])
    sample_files.write(to, x, labels, class_names=class_names)
