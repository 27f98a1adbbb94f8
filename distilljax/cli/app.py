"""The command line: ``distilljax train | sample | evaluate | bench | pairs | ...``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence

from distilljax.__about__ import __version__
from distilljax.cli import commands
from distilljax.runtime import extras, terminal
from distilljax.runtime.errors import unknown

_CARD = "card: a .py with get_config(), or a name of distilljax configs"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    terminal.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, parsers = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in parsers:
        parser.error(unknown("command", arguments[0], parsers))
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("compile", "convert", "train"):
        known = _options(options.command, parsers)
        parser.error(unknown("argument", rest[0].split("=", 1)[0], known))
    if options.command is None:
        parser.print_help()
        return 0
    try:
        if options.command == "train":
            from distilljax.training import distributed

            # Before anything asks jax for a device.
            distributed.initialize_from(options)
        if getattr(options, "config", None):
            options.card = read_card(options.config, rest)
        from distilljax.runtime import promotion

        with promotion.usual():
            status = COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What reads the output has had enough (``| head``); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        told = error
        if "pip install" not in str(error):
            told = extras.missing(error, "the command")
        print(f"distilljax {options.command}: {told}", file=sys.stderr)
        return 2
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"distilljax {options.command}: {error}", file=sys.stderr)
        return 2


def _options(
    command: str | None, parsers: dict[str, argparse.ArgumentParser]
) -> list[str]:
    if command is None:
        return ["--help", "--version", *parsers]
    return [text for text in parsers[command]._option_string_actions if text != "-h"]


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="distilljax",
        description="Distils diffusion and flow teachers into 1 to 4 step generators.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parsers = parser.add_subparsers(dest="command", metavar="command")

    train = parsers.add_parser(
        "train",
        help="train an experiment card, or continue its run",
        description="Trains a card. Any value of it can be overridden: "
        "--config.student.lr=1e-4 --config.cycles=500. A card is Python and is "
        "executed: run only those that you have read. Run folders are data and are "
        "never executed.",
        allow_abbrev=False,
    )
    train.add_argument("--config", required=True, help=_CARD)
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

    init = parsers.add_parser(
        "init",
        help="write configs for your own data: a teacher and a student",
        description="Looks at a folder of images (class folders are labels), an .npz "
        "or .npy file or records, and writes teacher.py and METHOD.py with sizes that "
        "fit. Nothing is overwritten. See docs/your_own_images.md.",
        allow_abbrev=False,
    )
    init.add_argument("--data", required=True, help="folder or file of the data")
    init.add_argument(
        "--method", default="scm", help="of the student; default scm, see methods"
    )
    init.add_argument(
        "--out", default="configs/mine", help="folder of the configs; configs/mine"
    )
    init.add_argument(
        "--size", type=int, help="side of the images of a folder; default their own"
    )

    sample = parsers.add_parser(
        "sample", help="sample the student of a run, finished or not"
    )
    sample.add_argument("--run", required=True, help="run folder")
    sample.add_argument("--steps", type=int, default=1, help="network evaluations")
    sample.add_argument("--count", type=int, help="number of samples")
    sample.add_argument(
        "--labels",
        help="labels or names of classes joined by commas, one per sample: 0,cat",
    )
    sample.add_argument(
        "--data",
        help=".npz with the fields that the student reads: conditions 'cond', and what "
        "samples start from",
    )
    sample.add_argument(
        "--guidance", type=_number, help="scale, for students that are told one"
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
        "--teacher-guidance", type=_number, default=1.0, help="its scale; 1 is off"
    )
    sample.add_argument(
        "--out",
        help="FILE.npz, .npy, .png or .jpg (the arrays go into the .npz beside a "
        "picture), or FOLDER/ with one PNG a sample; default "
        "<run>/samples/steps<k>_seed<s>.npz",
    )

    judge = parsers.add_parser(
        "evaluate",
        help="measure sample files of any origin against a reference",
        description="Measures samples against data or its statistics. Every number "
        "carries its protocol; numbers of different protocols are not compared.",
        allow_abbrev=False,
    )
    judge.add_argument(
        "--samples",
        required=True,
        help=".npz or .npy with x, a folder of pictures, or a picture",
    )
    judge.add_argument(
        "--reference",
        required=True,
        help="the data, as the samples, or statistics of it, .npz",
    )
    judge.add_argument(
        "--features",
        help="pixels (default up to 1000 values a sample), random_convolutions[:SEED] "
        "(default above), digits, inception:PATH or torch_fidelity:NAME:PATH",
    )
    judge.add_argument(
        "--metrics", help="names joined by commas, or all; default the usual ones"
    )
    judge.add_argument("--rounding", default="uint8", help="uint8 (default) or none")
    for name in ("--range", "--reference-range"):
        judge.add_argument(
            name,
            help="-1,1 or 0,1 or 0,255 or none; default as the file says, or detected",
        )
    judge.add_argument("--seed", type=int, help="noise seed of the samples, recorded")
    judge.add_argument("--out", help="report, .json")
    judge.add_argument("--save-statistics", help="statistics of the reference, .npz")
    judge.add_argument("--against", help="another report, to compare with")
    judge.add_argument(
        "--force", action="store_true", help="compare different protocols too"
    )
    pairs = parsers.add_parser(
        "pairs", help="write noise and what a teacher makes of it, for data.pairs"
    )
    pairs.add_argument("--run", required=True, help="run folder of the teacher")
    pairs.add_argument("--out", required=True, help="folder; a call cut short goes on")
    pairs.add_argument("--count", type=int, required=True, help="number of samples")
    pairs.add_argument("--kind", default="pairs", help="pairs or trajectory")
    pairs.add_argument("--nfe", type=int, default=50, help="network evaluations")
    pairs.add_argument("--segments", type=int, default=4, help="states of a trajectory")
    pairs.add_argument("--solver", default="Heun()", help="for example DPMSolverPP2M()")
    pairs.add_argument("--guidance", type=_number, default=1.0)
    pairs.add_argument("--seed", type=int, default=0)
    pairs.add_argument("--batch-size", type=int, default=512)
    pairs.add_argument("--conditions", help=".npz with cond; default all classes")

    convert = parsers.add_parser(
        "convert", help="write the data of a card as ArrayRecord, for data.records"
    )
    convert.add_argument("--config", required=True, help=_CARD)
    convert.add_argument("--out", required=True, help="folder")
    convert.add_argument("--shards", type=int, default=1, help="number of files")
    convert.add_argument("--x0", help="uint8, float16 or float32")
    edit = parsers.add_parser(
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
    edit.add_argument("--noise", type=_number, help="standard deviation of the noise")
    edit.add_argument("--strength", type=_number, help="in (0, 1]; 1 forgets the image")
    edit.add_argument("--steps", type=int, default=8, help="network evaluations")
    edit.add_argument(
        "--labels", help="labels or names of classes joined by commas, one per image"
    )
    edit.add_argument("--seed", type=int, default=0)
    edit.add_argument("--batch-size", type=int, default=512)
    edit.add_argument(
        "--out",
        help="as of sample; default <run>/edits/<task>_steps<k>_seed<s>.npz",
    )

    report = parsers.add_parser(
        "report", help="write the report of a quick start again"
    )
    report.add_argument("--out", default="runs/quickstart", help="its folder")

    ahead = parsers.add_parser(
        "compile", help="compile a card for TPUs that need not be there"
    )
    ahead.add_argument("--config", required=True, help=_CARD)
    ahead.add_argument(
        "--topology", default="v5e:4x4", help="chips, for example v5e:4x4, v5p:2x2x2"
    )
    ahead.add_argument(
        "--quick", action="store_true", help="let the compiler try less hard"
    )

    bench = parsers.add_parser(
        "bench",
        help="run every method on one problem with one budget, and compare",
        description="Every method from one teacher and one network with equally many "
        "network evaluations: bench.json, bench.md and bench.html. A second call "
        "continues. See docs/bench.md.",
        allow_abbrev=False,
    )
    bench.add_argument("--suite", default="mixture", help="mixture (default) or digits")
    bench.add_argument(
        "--methods", default=None, help="names joined by commas; default all"
    )
    bench.add_argument(
        "--budget", type=_number, help="network evaluations of a training, such as 4e6"
    )
    bench.add_argument("--seeds", type=int, help="trainings of each method; default 3")
    bench.add_argument("--out", help="folder, default runs/bench_<suite>")
    bench.add_argument(
        "--oracle_seed",
        "--oracle-seed",
        type=int,
        default=0,
        help="seed of the mixture that is the teacher",
    )
    bench.add_argument(
        "--oracle", help="another mixture: .npz with weights, means, stds"
    )
    bench.add_argument(
        "--dimension", type=int, help="of the mixture; 2 (default), 64, ..."
    )
    bench.add_argument(
        "--quick", action="store_true", help="eight methods, a small budget"
    )
    bench.add_argument("--fresh", action="store_true", help="start again from nothing")
    bench.add_argument(
        "--redo", action="store_true", help="run methods again that failed"
    )

    parsers.add_parser("configs", help="the cards of this library: name and aim")
    listed = parsers.add_parser(
        "methods", help="the catalogue: citation, data, networks"
    )
    listed.add_argument("--family", default=None, help="one family of methods only")
    listed.add_argument(
        "--format", default="text", help="text, md or json; default text"
    )

    quick = parsers.add_parser("quickstart", help="digits, a teacher, four methods")
    quick.add_argument("--out", default="runs/quickstart", help="folder of the results")
    quick.add_argument("--fresh", action="store_true", help="start again from nothing")
    quick.add_argument("--smoke", action="store_true", help="everything in miniature")
    quick.add_argument("--seed", type=int, default=0, help="seed of the trainings")
    return parser, dict(parsers.choices)


def _cycles(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be two cycles joined by a colon, for example 11:15, got {text!r}"
        ) from None


def _number(text: str) -> float:
    """A number that is finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return value


def read_card(path: str, overrides: Sequence[str]):
    """A card with overrides ``--config.key=value``, see `overrides.override`.

    Raises:
      ValueError: for an unknown key or argument, with the near matches, or a value that
        does not fit.
    """
    from distilljax.experiment import cards
    from distilljax.experiment import overrides as written

    config, texts = cards.load(path), {}
    for text in overrides:
        name, sign, value = text.partition("=")
        if not name.startswith("--config.") or not sign:
            options = _options("train", _parser()[1])
            raise ValueError(
                unknown("argument", name, options)
                + " Values of the card are written --config.key=value."
            )
        texts[name.removeprefix("--config.")] = value
    return written.override(config, texts)


COMMANDS = {
    "bench": commands.bench,
    "compile": commands.compile_card,
    "configs": commands.configs,
    "evaluate": commands.evaluate,
    "init": commands.init,
    "convert": commands.convert,
    "edit": commands.edit,
    "methods": commands.methods,
    "pairs": commands.pairs,
    "quickstart": commands.quickstart,
    "report": commands.report,
    "sample": commands.sample,
    "train": commands.train,
}

if __name__ == "__main__":
    sys.exit(main())
