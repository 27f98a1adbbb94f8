"""Cycles compiled for chips that are not there.

The compiler is the package libtpu. Inside the environment it would be asked for chips
whenever jax starts, so that `launch/test.sh` puts it beside it, into ``.venv/beside``.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from distilljax import ahead, cards

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30


def found(**changes):
    values = {
        "method": "scm",
        "topology": "v5e:4x4",
        "chips": 16,
        "arguments": 10 * GIB,
        "temporaries": 4 * GIB,
        "limit": 16 * GIB,
        "flops": 3 * 10**12,
        "collectives": {"all-reduce": 3},
        "seconds": 30.0,
    }
    return ahead.Compiled(**{**values, **changes})


def test_a_cycle_fits_or_says_that_it_does_not():
    assert found().fits
    text = str(found())
    for part in ("16 chips", "10.00 GiB", "4.00 GiB", "3.00 TFLOP", "all-reduce 3"):
        assert part in text
    large = found(temporaries=7 * GIB)
    assert not large.fits
    assert "DOES NOT FIT" in str(large)


def test_an_unknown_chip_is_refused_with_what_exists():
    with pytest.raises(ValueError, match=r"unknown chip 'v5x'.*v5e"):
        ahead.topology_mesh("v5x:2x2")


def test_samples_are_shaped_without_data():
    config = cards.load(ROOT / "configs" / "latent" / "scm.py")
    sample = ahead.sample_of(cards.outline(config))
    assert sample == {
        "x0": jax.ShapeDtypeStruct((32, 32, 4), jnp.float32),
        "cond": jax.ShapeDtypeStruct((), jnp.int32),
    }
    plain = ahead.sample_of(cards.Outline((2,), None))
    assert set(plain) == {"x0"}
    pair = ahead.sample_of(cards.Outline((2,), None, 5), ("eps",))
    assert pair["eps"] == pair["x0"] == jax.ShapeDtypeStruct((2,), jnp.float32)
    assert pair["cond"] == jax.ShapeDtypeStruct((5,), jnp.float32)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Environment variables under which libtpu is found."""
    folder = pathlib.Path(sys.prefix) / "beside"
    if not (folder / "libtpu").is_dir():
        folder = tmp_path_factory.mktemp("libtpu")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        wanted = [
            re.split(r"[ ;]", line)[0]
            for line in importlib.metadata.requires("jax") or []
            if line.startswith("libtpu")
        ]
        subprocess.run([*command, "--target", str(folder), *wanted], check=True)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


FOLDERS = ("latent", "latent_xl", "cifar")
METHODS = ("scm", "mean_flow", "dmd2", "rcm")
CARDS = [f"{f}/{m}" for f in FOLDERS for m in METHODS]
# Chips that the cards are made for, and others.
TOPOLOGIES = {"v5e:4x4": 16, "v5e:16x16": 256, "v6e:4x4": 16, "v5p:2x2x4": 16}
HERE = "v5e:4x4"
# Always compiled, whether or not the program was before.
ALWAYS = [("latent/scm", HERE)]
# Lowering a card takes up to half a minute, compiling one that changed up to ten: these
# are lowered at every call, and the others under --full.
USUAL = [*(f"latent/{m}" for m in METHODS), "latent_xl/scm", "latent_xl/mean_flow"]
FURTHER = ["imagenet64/scm", *(f"{f}/teacher" for f in (*FOLDERS, "imagenet64"))]
PAIRS = [
    *((card, HERE) for card in USUAL),
    *(
        pytest.param(card, HERE, marks=pytest.mark.full)
        for card in (*CARDS, *FURTHER)
        if card not in USUAL
    ),
    *(
        pytest.param(card, topology, marks=pytest.mark.full)
        for topology in TOPOLOGIES
        for card in CARDS
        if topology != HERE
    ),
]


def programs(environment, pairs, *options):
    """What `tests.ahead_programs` prints, by card and topology."""
    asked = [f"{card}@{topology}" for card, topology in pairs]
    if not asked:
        return {}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ahead_programs", *options, *asked],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120 + 900 * len(asked),
    )
    assert done.stdout.count("\n") == len(asked), done.stdout + done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {tuple(line["pair"].split("@")): line for line in lines}


@pytest.fixture(scope="module")
def compiled(beside, request):
    """Results of all that was asked for.

    A compiler takes up to 8 GiB, so that there is one at a time. Some are always
    compiled; those that were not compiled before, which take up to ten minutes each,
    are under ``--full``.
    """
    full = "not full" not in request.config.option.markexpr
    asked = [
        (item.callspec.params["card"], item.callspec.params["topology"])
        for item in request.session.items
        if getattr(item, "originalname", "") == test_cards_fit_their_chips.__name__
    ]
    fresh = [pair for pair in asked if pair in ALWAYS]
    rest = [pair for pair in asked if pair not in fresh]
    options = () if full else ("--known",)
    return programs(beside, fresh, "--compile") | programs(beside, rest, *options)


@pytest.mark.parametrize(("card", "topology"), PAIRS)
def test_cards_fit_their_chips(compiled, card, topology):
    """``pytest -rP`` prints what each needs of a chip; 0 s: compiled before."""
    found = compiled[card, topology]
    if "fits" not in found:
        pytest.skip(
            "the program has changed since it was compiled: --full compiles it, and "
            f"python -m tests.ahead_programs --write {card}@{topology} keeps what it "
            "needs"
        )
    print(found["text"])
    assert f"{TOPOLOGIES[topology]} chips" in found["text"]
    assert found["fits"]
    assert not found.get("changed"), "an equal program needs something else"
    assert "all-reduce" in found["collectives"]
    # Replicated networks are never gathered; split ones are, a layer at a time.
    assert ("all-gather" in found["collectives"]) == card.startswith("latent_xl")


def test_the_command_says_what_a_card_needs(beside):
    command = [sys.executable, "-m", "distilljax", "compile", "--quick"]
    done = subprocess.run(
        [*command, "--config=configs/latent/mean_flow.py", f"--topology={HERE}"],
        cwd=ROOT,
        env=beside,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "16 chips" in done.stdout
    assert ", fits;" in done.stdout
