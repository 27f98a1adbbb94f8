"""Configs for data of one's own: ``distilljax init --data=images/``.

The data is looked at (`looking.look`), and a teacher's and a student's card are written
with sizes that fit: the network by the side of the images and their number, and with it
batch and length of the run. The numbers are starting points of the size of the cards in
``configs/``, not measured on the data.
"""

from __future__ import annotations

import dataclasses
import os
import pprint
import textwrap
from collections.abc import Mapping
from typing import Any

from etils import epath

from distilljax import methods
from distilljax.experiment import cards
from distilljax.experiment.looking import Look, look
from distilljax.runtime import storage
from distilljax.runtime.errors import unknown

_LAW = "Mixture(((0.7, LogitNormal(0.0, 1.0)), (0.3, Uniform())))"


def otherwise(method: str) -> str:
    """Why pictures and a teacher are not enough for a method, and what to do."""
    entry = methods.CATALOGUE[method]
    if entry.makes == "teacher":
        return (
            "it makes teachers, and teacher.py is written anyway; leave --method out, "
            "or name the method that distils it"
        )
    if reason := entry.asks_for_more():
        return f"{reason} here; see configs/digits/{method}.py"
    roles = entry.factory().roles.items()
    own = [n for n, role in roles if role.init == "given" and n != "teacher"]
    if own:
        return (
            f"it needs a {own[0]} of your own, which a config names; see "
            "docs/your_own_network.md"
        )
    return ""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Network and length of a run that fit an amount of data.

    Attributes:
      network: section of the backbone.
      why: reason for the network, in words.
      batch: samples of an update.
      teacher: cycles of the teacher.
      student: cycles of the student.
      lr: learning rates of teacher and student.
      hardware: where this is for.
    """

    network: dict[str, Any]
    why: str
    batch: int
    teacher: int
    student: int
    lr: tuple[float, float]
    hardware: str


def sizes(found: Look) -> Sizes:
    """Sizes that fit what was found."""
    shape, count = found.sample_shape, found.count
    chosen = _image_sizes(shape, count)
    if chosen is None:
        wide = 256 if count < 50_000 else 512
        chosen = Sizes(
            {"name": "mlp", "width": wide, "hidden": wide, "blocks": 4},
            "an mlp: samples are small, or no square images",
            256,
            2500,
            1800,
            (2e-3, 5e-4),
            "2 CPU cores",
        )
    # A batch is at most the data.
    batch = min(chosen.batch, 2 ** max(0, count.bit_length() - 1))
    return dataclasses.replace(chosen, batch=batch)


def _patch(side: int, most: int) -> int:
    """The smallest patch of which at most so many lie along a side."""
    return next(p for p in range(1, side + 1) if side % p == 0 and side // p <= most)


def _image_sizes(shape: tuple[int, ...], count: int) -> Sizes | None:
    """Sizes for square images of 16 pixels and more; None for other data."""
    if len(shape) != 3 or shape[0] != shape[1] or shape[0] < 16:
        return None
    side = shape[0]
    patch = _patch(side, 8)
    if side // patch < 4:
        return None
    if count < 2000:
        return Sizes(
            {"name": "dit", "patch": patch, "width": 128, "depth": 4, "heads": 4},
            f"a small transformer on patches of {patch} x {patch}: {count} images are "
            "few, and it is quick on a CPU",
            64,
            500,
            300,
            (1e-3, 3e-4),
            "2 CPU cores",
        )
    # Down to about 8 x 8 positions.
    levels = 3 if side <= 32 else 4
    if side > 64 or side % 2 ** (levels - 1):
        size = "S" if count < 20_000 else "B"
        patch = _patch(side, 16)
        return Sizes(
            {"name": "dit", "size": size, "patch": patch},
            f"DiT-{size} on patches of {patch} x {patch}: images are large, or of a "
            "side that no UNet halves",
            128,
            50_000,
            20_000,
            (1e-4, 5e-5),
            "a GPU",
        )
    many = count >= 20_000
    wide = (2, 2, 2) if many else (1, 2, 2)
    return Sizes(
        {
            "name": "unet",
            "channels": 128 if many else 64,
            "multipliers": wide if levels == 3 else (1, 2, 2, 2),
            "blocks": 4 if many else 2,
            "dropout": 0.13 if many else 0.2,
        },
        "a UNet" + (" of the size of EDM's on CIFAR-10" if many else ", a small one"),
        256 if many else 128,
        100_000 if many else 30_000,
        30_000 if many else 10_000,
        (5e-4, 1e-4),
        "a GPU",
    )


def options_of(method: str, cycles: int) -> dict[str, Any]:
    """Options of a method for a run of so many cycles; defaults are for long ones.

    Those of configs/digits, with schedules as shares of the run.
    """
    ramp = f"Ramp({max(1, cycles // 5)})"
    plain = {"tangent": None, "learned_weight": False}
    critic = {"critic_steps": 2}
    known: dict[str, dict[str, Any]] = {
        "scm": {"law": "LogNormal(0.0, 1.4)", "warmup": ramp, **plain},
        "mean_flow": {"warmup": ramp},
        "facm": {"warmup": ramp},
        "de_cm": {"start": f"Ramp({max(1, cycles // 2)}, 0.9, 1.0)", "warmup": ramp},
        "ect": {"gap": f"Shrink({cycles}, 6)"},
        "ict": {
            "segments": f"DoublingSegments({cycles}, 10, 80)",
            "mean": 0.0,
            "init": "teacher",
        },
        "cm_ct": {
            "segments": f"RootSegments({cycles}, 2, 30)",
            "grid": "EvenGrid()",
            "target_decay": 0.0,
            "init": "teacher",
        },
        "progressive": {
            "steps": (16, 8, 4, 2, 1),
            "round_cycles": max(1, cycles // 5),
        },
        "pi_flow": {"teacher_ratio": f"Ramp({max(1, cycles // 4)}, 1.0, 0.0)"},
        "dmd2": {
            "steps": (4,),
            "grid": "EvenGrid()",
            "gan_weight": 0.01,
            "gan_critic_weight": 0.02,
            "floor": 0.05,
            **critic,
        },
        "f_distill": {
            "gan_weight": 0.01,
            "gan_critic_weight": 0.02,
            "floor": 0.05,
            **critic,
        },
        "tdm": {**critic},
        "dmd": {**critic},
        "diff_instruct": {**critic},
        "rcm": {
            "warmup": max(1, cycles * 7 // 10),
            "law": "LogNormal(0.0, 1.4)",
            "grid": "EvenGrid()",
            "steps": (4,),
            "scm_options": {"warmup": ramp, "tangent": None},
            **critic,
        },
        "sana_sprint": {
            "law": "LogNormal(0.0, 1.4)",
            "adversarial_weight": 0.01,
            "scm_weight": 1.0,
            "warmup": max(1, cycles // 5),
            "scm_options": plain,
        },
    }
    return known.get(method, {})


def begin(
    path: str | os.PathLike,
    *,
    method: str = "scm",
    out: str | os.PathLike = "configs/mine",
    size: int | None = None,
) -> list[str]:
    """Writes ``teacher.py`` and ``<method>.py`` for data of one's own.

    Args:
      path: see `looking.look`.
      method: of the student.
      out: folder of the configs; its name is that of the runs.
      size: see `looking.look`.

    Returns:
      Lines for the reader: what was found, what was written, and the next commands.

    Raises:
      ValueError: on data that no source reads, a method that cannot start from it, or
        files that are there already; nothing is written then.
    """
    if method not in methods.CATALOGUE:
        raise ValueError(unknown("method", method, methods.CATALOGUE))
    if reason := otherwise(method):
        raise ValueError(f"--method={method}: {reason}")
    out = epath.Path(out)
    files = [out / "teacher.py", out / f"{method}.py"]
    there = [str(file) for file in files if file.exists()]
    if there:
        raise ValueError(
            f"{' and '.join(there)} would be overwritten; remove what is there, or "
            "choose another folder with --out"
        )
    found = look(path, size=size)
    chosen = sizes(found)
    texts = [_teacher(found, chosen, out), _student(found, chosen, out, method)]
    for file, text in zip(files, texts, strict=True):
        storage.write_atomic(file, text)
    for file in files:
        # What was written can be read, and fits the data.
        cards.expand(cards.load(file))
    return _said(found, chosen, out, files, method)


def _said(
    found: Look, chosen: Sizes, out: epath.Path, files: list[epath.Path], method: str
) -> list[str]:
    lines = [f"data: {found.words()}", *_classes(found)]
    if found.note:
        lines.append(f"  {found.note}")
    train = f"distilljax train --config={out}"
    labels = ""
    if found.class_names:
        # Those that a comma does not tear apart.
        first = [name for name in found.class_names[:2] if "," not in name]
        labels = f" --labels={','.join(first)}" if first else ""
    return [
        *lines,
        f"network: {chosen.why}",
        f"hardware: {chosen.hardware}; batch {chosen.batch}, {chosen.teacher} cycles "
        f"of the teacher, {chosen.student} of the student",
        f"wrote {' and '.join(map(str, files))}; every value can be changed there, or "
        "in the command: --config.cycles=2000",
        "next:",
        f"  {train}/teacher.py --out=runs/{out.name}/teacher",
        f"  {train}/{method}.py --out=runs/{out.name}/{method}",
        f"  distilljax sample --run=runs/{out.name}/{method} --steps=4{labels}",
    ]


def _classes(found: Look) -> list[str]:
    if found.class_names is None:
        return []
    counts = found.per_class or ("",) * len(found.class_names)
    told = [
        f"{label} {ascii(name)[1:-1]}" + (f" ({count})" if count != "" else "")
        for label, (name, count) in enumerate(zip(found.class_names, counts))
    ]
    more = f" and {len(told) - 20} more" if len(told) > 20 else ""
    return textwrap.wrap(f"classes: {', '.join(told[:20])}{more}", 84)


def _teacher(found: Look, chosen: Sizes, out: epath.Path) -> str:
    options: dict[str, Any] = {"law": _LAW}
    if found.num_classes:
        options["label_dropout"] = 0.1
    role = {
        "optimizer": "adamw",
        "lr": chosen.lr[0],
        "schedule": {"name": "warmup_cosine", "warmup": min(200, chosen.teacher // 10)},
        "clip": 1.0,
        "ema": 0.998 if chosen.teacher < 10_000 else 0.9999,
    }
    notes = {
        "options": [
            "Of the times of training, three in ten are drawn evenly from all.",
            *(
                ["One label in ten is left out, so that students may be guided."]
                if found.num_classes
                else []
            ),
        ],
        "student": [
            "The trained network is called the student here too. ema is the decay of",
            "the average of its parameters that is sampled.",
        ],
    }
    return _written(
        "Flow-matching teacher",
        found,
        chosen,
        f"distilljax train --config={out}/teacher.py --out=runs/{out.name}/teacher",
        "flow_matching",
        options,
        {"cycles": chosen.teacher, "batch_size": chosen.batch, "student": role},
        notes,
    )


def _student(found: Look, chosen: Sizes, out: epath.Path, method: str) -> str:
    options = options_of(method, chosen.student)
    built = cards.card(
        method,
        options,
        source=found.section,
        networks={"backbone": chosen.network},
    )
    entry = methods.CATALOGUE[method]
    trained = cards.expand(built, source=cards.outline(built)).method.trained
    values: dict[str, Any] = {
        "teacher": f"runs/{out.name}/teacher",
        "cycles": chosen.student,
        "batch_size": chosen.batch,
    }
    warmup = {"name": "warmup_cosine", "warmup": min(50, chosen.student // 10)}
    common = {"optimizer": "adamw", "schedule": warmup, "clip": 1.0}
    values["student"] = {
        **common,
        "lr": chosen.lr[1],
        "ema": 0.99 if chosen.student < 5000 else 0.999,
    }
    for role in trained:
        if role == "discriminator":
            values[role] = {**common, "lr": 2 * chosen.lr[1], "betas": (0.5, 0.99)}
        elif role != "student":
            values[role] = {**common, "lr": 2 * chosen.lr[1]}
    notes = {
        "options": [
            "What is not named here is as the method's release has it; see",
            f"help(distilljax.methods.{method}).",
        ],
        "teacher": ["Run folder of the teacher; --teacher=FOLDER takes another."],
    }
    return _written(
        f"Student of the teacher beside it: {entry.summary}",
        found,
        chosen,
        f"distilljax train --config={out}/{method}.py --out=runs/{out.name}/{method}",
        method,
        options,
        values,
        notes,
    )


def _written(
    title: str,
    found: Look,
    chosen: Sizes,
    command: str,
    method: str,
    options: Mapping[str, Any],
    values: Mapping[str, Any],
    notes: Mapping[str, list[str]],
) -> str:
    """The text of a card."""
    head = textwrap.wrap(f"{title}.", 86)
    body = "\n".join([*head, "", f"    {command}", "", f"Data: {found.words()}."])
    body += f"\nHardware: {chosen.hardware}. Cost and result: not measured."
    shared = "The student starts from the teacher's parameters: the same in both files."
    lines = [
        f'"""{_harmless(body)}\n"""',
        "",
        "from distilljax import cards",
        "",
        *(f"# {line}" for line in _classes(found)),
        *(f"# {line}" for line in textwrap.wrap(found.note, 86)),
        f"SOURCE = {_code(found.section)}",
        *(f"# {line}" for line in textwrap.wrap(f"{chosen.why}. {shared}", 86)),
        f"BACKBONE = {_code(chosen.network)}",
        "",
        "",
        "def get_config():",
        "    return cards.card(",
        f'        "{method}",',
        *(f"        # {line}" for line in notes.get("options", ())),
        f"        {_code(dict(options), 8)},",
        "        source=SOURCE,",
        "        # What the method needs beside it is filled in.",
        '        networks={"backbone": BACKBONE},',
    ]
    for name, value in values.items():
        lines += [f"        # {line}" for line in notes.get(name, ())]
        lines.append(f"        {name}={_code(value, 8)},")
    return "\n".join([*lines, "    )", ""])


def _harmless(text: str) -> str:
    """Text for a docstring: it neither ends it nor escapes anything."""
    return text.replace("\\", "/").replace('"""', "'''")


def _code(value: Any, indent: int = 0) -> str:
    """A plain value as Python, one key a line; texts are quoted and escaped."""
    if not isinstance(value, Mapping):
        text = pprint.pformat(value, width=200)
        quoted = isinstance(value, str) and '"' not in value and "\\" not in text
        return f'"{value}"' if quoted and text[0] == "'" else text
    if not value:
        return "{}"
    pad = " " * (indent + 4)
    inner = [f"{pad}{_code(k)}: {_code(v, indent + 4)}," for k, v in value.items()]
    return "\n".join(["{", *inner, f"{' ' * indent}}}"])
