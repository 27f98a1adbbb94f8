"""The command line: ``distilljax train | sample | edit | evaluate | pairs | ...``."""

from __future__ import annotations

import argparse
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
    if rest and options.command not in ("compile", "convert", "train"):
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
    train.add_argument(
        "--profile",
        type=_cycles,
        metavar="A:B",
        help="trace cycles A to B into profile/ of the run folder",
    )
    train.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, told by Slurm, Open MPI, TPU or GKE",
    )
    train.add_argument("--coordinator", help="elsewhere: host:port of process 0")
    train.add_argument("--processes", type=int, help="elsewhere: their number")
    train.add_argument("--process", type=int, help="elsewhere: number of this one")

    sample = commands.add_parser("sample", help="sample the student of a finished run")
    sample.add_argument("--run", required=True, help="run folder")
    sample.add_argument("--steps", type=int, default=1, help="network evaluations")
    sample.add_argument("--count", type=int, help="number of samples")
    sample.add_argument("--labels", help="comma-separated labels, one per sample")
    sample.add_argument(
        "--data", help=".npz with conditions 'cond', and what samples start from"
    )
    sample.add_argument(
        "--guidance", type=float, help="scale, for students that are told one"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch-size", type=int, default=512)
    sample.add_argument("--teacher", help="run folder; it takes the first steps")
    sample.add_argument(
        "--teacher-steps", type=int, default=1, help="how many of them, default 1"
    )
    sample.add_argument(
        "--teacher-nfe", type=int, help="its evaluations for them, default 2 a step"
    )
    sample.add_argument(
        "--teacher-guidance", type=float, default=1.0, help="its scale; 1 is off"
    )
    sample.add_argument(
        "--out", help="file, default <run>/samples/steps<k>_seed<s>.npz"
    )

    judge = commands.add_parser(
        "evaluate",
        help="measure sample files of any origin against a reference",
        description="Measures samples against data or its statistics. Every number "
        "carries its protocol; numbers of different protocols are not compared.",
        allow_abbrev=False,
    )
    judge.add_argument("--samples", required=True, help=".npz or .npy with x")
    judge.add_argument(
        "--reference", required=True, help="the data, or statistics of it, .npz"
    )
    judge.add_argument(
        "--features",
        default="pixels",
        help="pixels, digits, random_convolutions[:SEED], inception:PATH or "
        "torch_fidelity:NAME:PATH",
    )
    judge.add_argument(
        "--metrics", help="names joined by commas, or all; default the usual ones"
    )
    judge.add_argument("--rounding", default="uint8", help="uint8 (default) or none")
    for name in ("--range", "--reference-range"):
        judge.add_argument(name, help="-1,1 or 0,1 or 0,255 or none; default detected")
    judge.add_argument("--seed", type=int, help="noise seed of the samples, recorded")
    judge.add_argument("--out", help="report, .json")
    judge.add_argument("--save-statistics", help="statistics of the reference, .npz")
    judge.add_argument("--against", help="another report, to compare with")
    judge.add_argument(
        "--force", action="store_true", help="compare different protocols too"
    )
    pairs = commands.add_parser(
        "pairs", help="write noise and what a teacher makes of it, for data.pairs"
    )
    pairs.add_argument("--run", required=True, help="run folder of the teacher")
    pairs.add_argument("--out", required=True, help="folder; a call cut short goes on")
    pairs.add_argument("--count", type=int, required=True, help="number of samples")
    pairs.add_argument("--kind", default="pairs", help="pairs or trajectory")
    pairs.add_argument("--nfe", type=int, default=50, help="network evaluations")
    pairs.add_argument("--segments", type=int, default=4, help="states of a trajectory")
    pairs.add_argument("--solver", default="Heun()", help="for example DPMSolverPP2M()")
    pairs.add_argument("--guidance", type=float, default=1.0)
    pairs.add_argument("--seed", type=int, default=0)
    pairs.add_argument("--batch-size", type=int, default=512)
    pairs.add_argument("--conditions", help=".npz with cond; default all classes")

    convert = commands.add_parser(
        "convert", help="write the data of a card as ArrayRecord, for data.records"
    )
    convert.add_argument(
        "--config", required=True, help="card, a .py with get_config()"
    )
    convert.add_argument("--out", required=True, help="folder")
    convert.add_argument("--shards", type=int, default=1, help="number of files")
    convert.add_argument("--x0", help="uint8, float16 or float32")
    edit = commands.add_parser(
        "edit",
        help="fill, colour, enlarge, clean or redraw images with a student",
        description="Tasks: inpaint (needs --mask), colourise, super_resolve, denoise "
        "(needs --noise), stroke (needs --strength). See docs/editing.md.",
    )
    edit.add_argument("--run", required=True, help="run folder of the student")
    edit.add_argument("--task", required=True, help="one of the tasks above")
    edit.add_argument(
        "--input", required=True, help=".npz with x [N, H, W, C], label, mask"
    )
    edit.add_argument("--mask", help=".npy or .npz, not 0 in the hole")
    edit.add_argument("--noise", type=float, help="standard deviation of the noise")
    edit.add_argument("--strength", type=float, help="in (0, 1]; 1 forgets the image")
    edit.add_argument("--steps", type=int, default=8, help="network evaluations")
    edit.add_argument("--labels", help="comma-separated labels, one per image")
    edit.add_argument("--seed", type=int, default=0)
    edit.add_argument("--batch-size", type=int, default=512)
    edit.add_argument(
        "--out", help="file, default <run>/edits/<task>_steps<k>_seed<s>.npz"
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


def _cycles(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be two cycles joined by a colon, for example 11:15, got {text!r}"
        ) from None


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
    from etils import epath

    from distilljax import api, cards
    from distilljax.training import distributed

    distributed.initialize_from(options)
    config = read_card(options.config, rest)
    if options.teacher:
        with config.unlocked():
            config.teacher = options.teacher
    found = cards.expand(config)
    folder = epath.Path(options.out or f"runs/{epath.Path(options.config).stem}")
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
        folder.rmtree()
    fitted = api.fit(
        found.method,
        networks=found.networks,
        source=found.source,
        teacher=teacher,
        config=found.train,
        folder=folder,
        card={"card": found.config},
        profile=options.profile,
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
        sample=ahead.sample_of(outline, found.method.batch & {"eps", "y"}),
        topology=options.topology,
    )
    print(result)
    return 0 if result.fits else 1


def _labels(text: str | None) -> list[int] | None:
    if not text:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--labels must be integers joined by commas, got {text!r}"
        ) from None


def _sample(options: argparse.Namespace, rest: list[str]) -> int:
    from etils import epath

    from distilljax import api

    led = f"_teacher{options.teacher_steps}" if options.teacher else ""
    if options.guidance is not None:
        led += f"_guidance{options.guidance:g}"
    name = f"steps{options.steps}{led}_seed{options.seed}.npz"
    out = epath.Path(options.out or epath.Path(options.run) / "samples" / name)
    student, teacher, lead = api.load(options.run), None, None
    if options.teacher:
        teacher = api.load(options.teacher)
        given = options.teacher_steps, options.teacher_nfe, options.teacher_guidance
        lead = api.lead_of(student, teacher, *given)
    field = student.method.sampling.start
    fields = _fields(options.data, [name for name in ("cond", field) if name])
    x = api.sample(
        student,
        steps=options.steps,
        count=options.count,
        labels=_labels(options.labels),
        cond=fields.get("cond"),
        start=None if field is None else fields.get(field),
        seed=options.seed,
        batch_size=options.batch_size,
        teacher=teacher,
        teacher_steps=options.teacher_steps,
        teacher_nfe=options.teacher_nfe,
        teacher_guidance=options.teacher_guidance,
        guidance=options.guidance,
        out=out,
    )
    print(f"{len(x)} samples in {out}, {api.spent(options.steps, lead)}")
    return 0


def _edit(options: argparse.Namespace, rest: list[str]) -> int:
    from etils import epath

    from distilljax import image_edits

    given = image_edits.read_images(options.input)
    labels = _labels(options.labels)
    mask = image_edits.read_mask(options.mask) if options.mask else None
    if mask is None and options.task == "inpaint":
        mask = given.get("mask")
    name = f"{options.task}_steps{options.steps}_seed{options.seed}.npz"
    out = epath.Path(options.out or epath.Path(options.run) / "edits" / name)
    x = image_edits.edit(
        options.run,
        options.task,
        given["x"],
        labels=given.get("label") if labels is None else labels,
        mask=mask,
        noise=options.noise,
        strength=options.strength,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
        out=out,
    )
    print(f"{len(x)} images in {out}, NFE {options.steps}")
    return 0


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import storage
    from distilljax.evaluation import features, files, measuring, protocol, samples

    notes: list[str] = []

    def say(line: str) -> None:
        if line.startswith("warning"):
            notes.append(line)
        print(line, file=sys.stderr, flush=True)

    others = measuring.read_report(options.against) if options.against else {}
    ranges = [samples.parse_range(r) for r in (options.range, options.reference_range)]
    extractor = features.extractor(options.features)
    given = samples.read_samples(
        options.samples, rounding=options.rounding, value_range=ranges[0]
    )
    reference = samples.read_reference(
        options.reference, rounding=options.rounding, value_range=ranges[1]
    )
    for part in (given, reference):
        say(samples.describe(part))
    found = measuring.evaluate(
        given,
        reference,
        extractor,
        options.metrics,
        seed=options.seed,
        statistics_out=options.save_statistics,
        progress=sys.stderr.isatty(),
        say=say,
    )
    if options.out:
        report = measuring.to_report(
            found, notes=notes, samples=given.source, digest=given.fingerprint
        )
        storage.write_atomic(options.out, files.dump_json(report))
    print("\n".join(measuring.table(found)))
    for name in sorted({*found} & {*others}, key=list(found).index):
        value, error = protocol.ratio(found[name], others[name], force=options.force)
        print(f"{name} is {value:.4g} +- {error:.2g} times that of {options.against}")
    return 0


def _pairs(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import api, data, pairs, specs

    teacher, conditions = api.load(options.run), None
    if options.conditions:
        conditions = data.conditions(
            options.conditions, sample_shape=teacher.sample_shape
        )
    folder = pairs.write_pairs(
        teacher,
        options.out,
        count=options.count,
        kind=options.kind,
        nfe=options.nfe,
        segments=options.segments,
        solver=specs.parse(options.solver),
        guidance=options.guidance,
        seed=options.seed,
        batch_size=options.batch_size,
        conditions=conditions,
    )
    print(f"{options.count} samples of {options.kind} in {folder}")
    print(f"train on them: a card with source name 'pairs' and path {str(folder)!r}")
    return 0


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    from distilljax import cards, data

    source = cards.expand(read_card(options.config, rest)).source
    folder = data.write_records(
        source, options.out, shards=options.shards, x0=options.x0
    )
    print(f"{len(source)} samples in {folder}")
    return 0


def _fields(path: str | None, names: Sequence[str]) -> dict[str, Any]:
    """Those of the fields that a file has; none without a file."""
    import numpy as np
    from etils import epath

    if path is None:
        return {}
    with epath.Path(path).open("rb") as file, np.load(file) as found:
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
    "evaluate": _evaluate,
    "convert": _convert,
    "edit": _edit,
    "methods": _methods,
    "pairs": _pairs,
    "quickstart": _quickstart,
    "report": _report,
    "sample": _sample,
    "train": _train,
}

if __name__ == "__main__":
    sys.exit(main())
