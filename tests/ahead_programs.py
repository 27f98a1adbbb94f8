"""Lowers cards for chips that are not there, and compiles what was not compiled before.

    python -m tests.ahead_programs [--compile] [--write] CARD@TOPOLOGY ...

``ahead_programs.json`` keeps what compiled programs need, by a digest of the program
and the options of the compiler: a UNet costs minutes to compile, and an equal program
needs about the same under every compiler of a release (``0.0.42``). ``--compile``
compiles all and, under the very compiler, compares with what was kept; ``--write``
keeps what is new in place of what the pair had; ``--known`` compiles none, and says of
a program that was not compiled before no more than that. Prints a JSON object a line.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

from distilljax import ahead, cards, storage

ROOT = pathlib.Path(__file__).parent.parent
KEPT = pathlib.Path(__file__).with_suffix(".json")
# What a program needs; the time it took to compile is none of it.
FIELDS = ("arguments", "temporaries", "flops", "collectives")


def needs(found):
    """The part of a result that is kept."""
    return {name: dataclasses.asdict(found)[name] for name in FIELDS}


def release(version):
    """The part of a version that a release of jax asks for."""
    return version.split(".")[:3]


def programs(pairs, always, kept, only_known=False):
    """``(pair, digest, result)`` of every pair."""
    for pair in pairs:
        card, _, topology = pair.partition("@")
        config = cards.load(ROOT / "configs" / f"{card}.py")
        program = ahead.lower_card(config, topology, quick=True)
        before = kept.get(pair, {})
        known = before.get("digest") == program.digest
        known = known and release(before["compiler"]) == release(program.compiler)
        result = {
            "pair": pair,
            "digest": program.digest,
            "compiler": program.compiler,
            "known": known,
        }
        if only_known and not known:
            yield pair, result, before
            continue
        found = program.compile() if always or not known else as_before(program, before)
        result |= {"text": str(found), "fits": found.fits, **needs(found)}
        yield pair, result, before


def as_before(program, before):
    """The result of a program that was compiled before."""
    setup = program.setup
    return ahead.Compiled(
        method=setup.method.name,
        topology=program.topology,
        chips=setup.mesh.size,
        limit=ahead.MEMORY[program.topology.partition(":")[0]] * 2**30,
        seconds=0.0,
        **{name: before[name] for name in FIELDS},
    )


def main(arguments=None):
    """1 if a program that was compiled again needs something else than before."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--known", action="store_true")
    given = parser.parse_args(arguments)
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    failed = False
    found = programs(given.pairs, given.compile, kept, given.known)
    for pair, result, before in found:
        if result["known"] and result["compiler"] == before["compiler"]:
            changed = [n for n in FIELDS if result[n] != before[n]]
            result["changed"] = changed
            failed |= bool(changed)
        print(json.dumps(result), flush=True)
        if given.write and "fits" in result:
            kept[pair] = {n: result[n] for n in ("digest", "compiler", *FIELDS)}
            text = json.dumps(dict(sorted(kept.items())), indent=1) + "\n"
            storage.write_atomic(KEPT, text.encode())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
