"""The command line: ``distilljax train | sample | report | methods | quickstart``."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from distilljax._version import __version__
from distilljax.errors import unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        parser.error(unknown("command", arguments[0], commands))
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("compile", "train"):
        known = _options(options.command, commands)
        parser.error(unknown("argument", rest[0].split("=", 1)[0], known))
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return COMMANDS[options.command](options, rest)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"distilljax {options.command}: {error}", file=sys.stderr)
        return 2


def _options(
    command: str | None, commands: dict[str, argparse.ArgumentParser]
) -> list[str]:
    if command is None:
        return ["--help", "--version", *commands]
    return [text for text in commands[command]._option_string_actions if text != "-h"]


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="distilljax",
        description="Distils diffusion and flow teachers into 1 to 4 step generators.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")

    train = commands.add_parser(
        "train",
        help="train an experiment card, or continue its run",
        description="Trains a card. Any value of it can be overridden: "
        "--config.student.lr=1e-4 --config.cycles=500.",
        allow_abbrev=False,
    )
    train.add_argument("--config", required=True, help="card, a .py with get_config()")
    train.add_argument("--out", help="run folder; default runs/<card's name>")
    train.add_argument("--teacher", help="run folder of the teacher")
    train.add_argument(
        "--fresh", action="store_true", help="remove an earlier run first"
    )

    sample = commands.add_parser("sample", help="sample the student of a finished run")
    sample.add_argument("--run", required=True, help="run folder")
    sample.add_argument("--steps", type=int, default=1, help="network evaluations")
    sample.add_argument("--count", type=int, help="number of samples")
    sample.add_argument("--labels", help="comma-separated labels, one per sample")
    sample.add_argument(
        "--data", help=".npz with conditions 'cond', and what samples start from"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch-size", type=int, default=512)
    sample.add_argument(
        "--out", help="file, default <run>/samples/steps<k>_seed<s>.npz"
    )

    report = commands.add_parser(
        "report", help="write the report of a quick start again"
    )
    report.add_argument("--out", default="runs/quickstart", help="its folder")

    ahead = commands.add_parser(
        "compile", help="compile a card for TPUs that need not be there"
    )
    ahead.add_argument("--config", required=True, help="card, a .py with get_config()")
    ahead.add_argument(
        "--topology", default="v5e:4x4", help="chips, for example v5e:4x4, v5p:2x2x2"
    )

    commands.add_parser("methods", help="the catalogue: citation, data, networks")

    quick = commands.add_parser("quickstart", help="digits, a teacher, four methods")
    quick.add_argument("--out", default="runs/quickstart", help="folder of the results")
    quick.add_argument("--fresh", action="store_true", help="start again from nothing")
    quick.add_argument("--smoke", action="store_true", help="everything in miniature")
    quick.add_argument("--seed", type=int, default=0, help="seed of the trainings")
    return parser, dict(commands.choices)


def read_card(path: str, overrides: Sequence[str]):
    """A card with overrides ``--config.key=value`` applied by ml_collections.

    Raises:
      ValueError: for an unknown key or argument, with the near matches, or a value that
        does not fit.
    """
    from absl import flags
    from ml_collections import config_flags

    from distilljax import cards

    config = cards.load(path)
    known = _keys(config)
    for text in overrides:
        if not text.startswith("--config.") or "=" not in text:
            options = _options("train", _parser()[1])
            raise ValueError(
                unknown("argument", text.split("=", 1)[0], options)
                + " Values of the card are written --config.key=value."
            )
        key = text[len("--config.") :].split("=", 1)[0]
        if key not in known:
            raise ValueError(unknown("config key", key, known))
    values, argv = flags.FlagValues(), ["distilljax", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise ValueError(f"an override does not fit the card: {error}") from error
    return values.config


def _keys(config, prefix: str = "") -> list[str]:
    out = []
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        out.append(name)
        if hasattr(value, "to_dict"):
            out += _keys(value, f"{name}.")
    return out


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    import shutil

    from distilljax import api, cards

    config = read_card(options.config, rest)
    if options.teacher:
        with config.unlocked():
            config.teacher = options.teacher
    found = cards.expand(config)
    folder = pathlib.Path(options.out or f"runs/{pathlib.Path(options.config).stem}")
    needed = found.method.roles.get("teacher")
    teacher = None
    if needed is not None or any(
        r.init == "teacher" for r in found.method.roles.values()
    ):
        if not found.teacher:
            raise ValueError(
                f"method {found.method.name!r} starts from a teacher: pass --teacher="
                "FOLDER of a finished run, for example of configs/digits/teacher.py"
            )
        teacher = api.load(found.teacher)
    if options.fresh and folder.exists():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no run, so --fresh leaves it alone")
        shutil.rmtree(folder)
    fitted = api.fit(
        found.method,
        networks=found.networks,
        source=found.source,
        teacher=teacher,
        config=found.train,
        folder=folder,
        card={"card": found.config},
    )
    assert fitted.result is not None
    print(f"{found.method.name}: {fitted.result.step} cycles in {folder}")
    print(f"sample it: distilljax sample --run={folder} --steps=1")
    return 0


def _compile(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import ahead, cards

    config = read_card(options.config, rest)
    outline = cards.outline(config)
    found = cards.expand(config, source=outline)
    result = ahead.compile_ahead(
        found.method,
        found.networks,
        found.train,
        sample=ahead.sample_of(outline),
        topology=options.topology,
    )
    print(result)
    return 0 if result.fits else 1


def _sample(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import api

    labels = None
    if options.labels:
        try:
            labels = [int(part) for part in options.labels.split(",")]
        except ValueError:
            raise ValueError(
                f"--labels must be integers joined by commas, got {options.labels!r}"
            ) from None
    name = f"steps{options.steps}_seed{options.seed}.npz"
    out = pathlib.Path(options.out or pathlib.Path(options.run) / "samples" / name)
    fitted = api.load(options.run)
    field = fitted.method.sampling.start
    given = _fields(options.data, [name for name in ("cond", field) if name])
    x = api.sample(
        fitted,
        steps=options.steps,
        count=options.count,
        labels=labels,
        cond=given.get("cond"),
        start=None if field is None else given.get(field),
        seed=options.seed,
        batch_size=options.batch_size,
        out=out,
    )
    print(f"{len(x)} samples in {out}")
    return 0


def _fields(path: str | None, names: Sequence[str]) -> dict[str, Any]:
    """Those of the fields that a file has; none without a file."""
    import numpy as np

    if path is None:
        return {}
    with np.load(path) as found:
        return {name: found[name] for name in names if name in found}


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import quickstart

    print(quickstart.rebuild(options.out))
    return 0


def _methods(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax.methods import CATALOGUE, build

    for name, entry in CATALOGUE.items():
        method = build(name)
        needs = sorted({n for role in method.roles.values() for n in role.needs})
        print(f"{name}  ({entry.family})")
        print(f"  {entry.line}")
        print(f"  cite: {entry.cite}")
        print(f"  batch: {', '.join(sorted(method.batch)) or 'conditions only'}")
        print(f"  roles: {', '.join(method.roles)}")
        print(f"  networks need: {', '.join(needs) or 'nothing special'}")
    return 0


def _quickstart(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import quickstart

    quickstart.run(
        options.out, fresh=options.fresh, smoke=options.smoke, seed=options.seed
    )
    return 0


COMMANDS = {
    "compile": _compile,
    "methods": _methods,
    "quickstart": _quickstart,
    "report": _report,
    "sample": _sample,
    "train": _train,
}

if __name__ == "__main__":
    sys.exit(main())
