"""What the commands of `distilljax.cli` do with their options.

Each takes the parsed options, with the card of ``--config`` as ``options.card``, and
returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def train(options: argparse.Namespace) -> int:
    """Trains a card, or continues its run."""
    from etils import epath

    from distilljax.experiment import api, cards, hints

    config = options.card
    if options.teacher:
        with config.unlocked():
            config.teacher = options.teacher
    found = cards.expand(config)
    name = cards.locate(options.config)[0].stem
    folder = epath.Path(options.out or f"runs/{name}")
    teacher = None
    if found.method.taught:
        if not found.teacher:
            raise ValueError(
                f"method {found.method.name!r} starts from a teacher: pass --teacher="
                "FOLDER of a finished run, for example of the card digits/teacher"
            )
        teacher = api.load(found.teacher)
    fitted = api.fit_card(
        found,
        teacher=teacher,
        folder=folder,
        profile=options.profile,
        fresh=options.fresh,
    )
    assert fitted.result is not None
    print(f"{found.method.name}: {fitted.result.step} cycles in {folder}")
    lines = hints.after_training(found.method, folder, conditional=fitted.conditional)
    print("\n".join(lines))
    return 0


def configs(options: argparse.Namespace) -> int:
    """Prints the cards of this library."""
    from distilljax.experiment import cards

    found = cards.shipped()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:{width}}  {cards.headline(path)}")
    return 0


def init(options: argparse.Namespace) -> int:
    """Writes configs for one's own data."""
    from distilljax.experiment import starting

    lines = starting.begin(
        options.data, method=options.method, out=options.out, size=options.size
    )
    print("\n".join(lines))
    return 0


def compile_card(options: argparse.Namespace) -> int:
    """Compiles a card for chips that are not there."""
    from distilljax.experiment import ahead

    program = ahead.lower_card(options.card, options.topology, quick=options.quick)
    result = program.compile()
    print(result)
    return 0 if result.fits else 1


def sample(options: argparse.Namespace) -> int:
    """Samples the student of a run."""
    from etils import epath

    from distilljax.data import files
    from distilljax.experiment import api

    led = f"_teacher{options.teacher_steps}" if options.teacher else ""
    if options.guidance is not None:
        led += f"_guidance{options.guidance:g}"
    name = f"steps{options.steps}{led}_seed{options.seed}.npz"
    out = options.out or epath.Path(options.run) / "samples" / name
    student, teacher, lead = api.load(options.run), None, None
    if options.teacher:
        teacher = api.load(options.teacher)
        given = options.teacher_steps, options.teacher_nfe, options.teacher_guidance
        lead = api.lead_of(student, teacher, *given)
    field, fields = student.method.sampling.start, {}
    if options.data is not None:
        names = ("cond",) * student.conditional + ((field,) if field else ())
        who = f"this student ({student.method.name})"
        fields = files.read_fields(options.data, names, who)
    x = api.sample(
        student,
        steps=options.steps,
        count=options.count,
        labels=options.labels or None,
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
    spent = api.spent(options.steps, lead)
    _say_where("samples", out, x, spent)
    return 0


def _say_where(what: str, out: Any, x: Any, spent: str) -> None:
    """Says where samples and their pictures are."""
    from distilljax.evaluation import sample_files

    to = sample_files.placed(out, x.shape[1:])
    print(f"{len(x)} {what} in {to.arrays}, {spent}")
    if to.says(len(x)):
        print(to.says(len(x)))


def edit(options: argparse.Namespace) -> int:
    """Edits images with the student of a run."""
    from etils import epath

    from distilljax.experiment import api, image_edits

    student = api.load(options.run)
    given = image_edits.read_images(options.input)
    mask = image_edits.read_mask(options.mask) if options.mask else None
    if mask is None and options.task == "inpaint":
        mask = given.get("mask")
    name = f"{options.task}_steps{options.steps}_seed{options.seed}.npz"
    out = options.out or epath.Path(options.run) / "edits" / name
    # Labels of the file are asked for where the student has classes.
    known = None if student.num_classes is None else given.get("label")
    x = image_edits.edit(
        student,
        options.task,
        given["x"],
        labels=options.labels or known,
        mask=mask,
        noise=options.noise,
        strength=options.strength,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
        out=out,
    )
    _say_where("images", out, x, f"NFE {options.steps}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measures a sample file."""
    from distilljax.evaluation import features, files, measuring, protocol, samples
    from distilljax.runtime import storage
    from distilljax.runtime.terminal import is_terminal

    notes: list[str] = []

    def say(line: str) -> None:
        if line.startswith("warning"):
            notes.append(line)
        print(line, file=sys.stderr, flush=True)

    others = measuring.read_report(options.against) if options.against else {}
    ranges = [samples.parse_range(r) for r in (options.range, options.reference_range)]
    # Names that do not exist are refused before files are read.
    extractor = features.extractor(options.features) if options.features else None
    given = samples.read_samples(
        options.samples, rounding=options.rounding, value_range=ranges[0]
    )
    reference = samples.read_reference(
        options.reference, rounding=options.rounding, value_range=ranges[1]
    )
    for part in (given, reference):
        say(samples.describe(part))
    if extractor is None:
        usual = measuring.usual_features(given, reference, say)
        extractor = features.extractor(usual)
    found = measuring.evaluate(
        given,
        reference,
        extractor,
        options.metrics,
        seed=options.seed,
        statistics_out=options.save_statistics,
        progress=is_terminal(),
        say=say,
    )
    if options.out:
        report = measuring.to_report(
            found,
            notes=notes,
            samples=given.source,
            digest=given.fingerprint,
            record=given.record,
        )
        storage.write_atomic(options.out, files.dump_json(report))
    print("\n".join(measuring.table(found)))
    for name in sorted({*found} & {*others}, key=list(found).index):
        if found[name].failed or others[name].failed:
            continue
        value, error = protocol.ratio(found[name], others[name], force=options.force)
        print(f"{name} is {value:.4g} +- {error:.2g} times that of {options.against}")
    return 0


def pairs(options: argparse.Namespace) -> int:
    """Writes what a teacher makes of noise."""
    from distilljax import data
    from distilljax.experiment import api, pairs, specs

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


def convert(options: argparse.Namespace) -> int:
    """Writes a card's data as records."""
    from distilljax import data
    from distilljax.experiment import cards

    source = cards.expand(options.card).source
    folder = data.write_records(
        source, options.out, shards=options.shards, x0=options.x0
    )
    print(f"{len(source)} samples in {folder}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Writes the report of a quick start again."""
    from distilljax.cli import quickstart

    print(quickstart.rebuild(options.out))
    return 0


def methods(options: argparse.Namespace) -> int:
    """Prints the catalogue."""
    from distilljax.experiment import catalogue

    print(catalogue.formatted(catalogue.chosen(options.family), options.format))
    return 0


def bench(options: argparse.Namespace) -> int:
    """Runs methods on a suite; 1 if one failed."""
    from distilljax import bench

    found = bench.run_suite(
        options.suite,
        options.out or f"runs/bench_{options.suite}",
        methods=options.methods,
        seeds=options.seeds,
        budget=None if options.budget is None else int(options.budget),
        oracle=options.oracle,
        oracle_seed=options.oracle_seed,
        dimension=options.dimension,
        quick=options.quick,
        fresh=options.fresh,
        redo=options.redo,
    )
    return int(any("error" in row for row in found["rows"]))


def quickstart(options: argparse.Namespace) -> int:
    """Runs the quick start."""
    from distilljax.cli import quickstart

    quickstart.run(
        options.out, fresh=options.fresh, smoke=options.smoke, seed=options.seed
    )
    return 0
