"""Losses need jax and numpy alone; what else is missing is named with its extra."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import distilljax
from distilljax import extras
from tests.test_imports import PACKAGE

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
TRAIN = sorted(name for name, extra in extras.EXTRAS.items() if extra == "train")
# The floors that stand on jax and numpy, but for the writing of files.
CORE = [
    f"{floor}.{file.stem}"
    for floor in ("runtime", "diffusion", "losses", "core", "methods")
    for file in sorted((PACKAGE / floor).glob("[!_]*.py"))
    if file.stem != "storage"
]


def without(names, script):
    """Runs a script in a process where the packages are not there."""
    code = BLOCK.format(names=set(names)) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )


def test_losses_methods_and_samplers_import_without_the_extra():
    names = ["losses", "methods", "sampling", "core.draws", *CORE]
    lines = "\n".join(f"import distilljax.{name}" for name in names)
    tail = """
import distilljax
from distilljax import cli
distilljax.methods.build("dmd2"), distilljax.compose
for attempt in (
    lambda: distilljax.fit,
    lambda: distilljax.cards,
    lambda: __import__("distilljax.networks.mlp"),
    lambda: __import__("distilljax.data"),
    lambda: __import__("distilljax.evaluation"),
    lambda: __import__("distilljax.training"),
    lambda: __import__("distilljax.bench"),
):
    try:
        attempt()
    except ModuleNotFoundError as error:
        print(error)
assert cli.main(["methods"]) == 0
assert cli.main(["train", "--config=digits/scm"]) == 2
"""
    done = without(extras.EXTRAS, lines + tail)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[:7]
    assert [line.split()[0] for line in said] == [
        "distilljax.fit",
        "distilljax.cards",
        *(
            f"distilljax.{name}"
            for name in ("networks", "data", "evaluation", "training", "bench")
        ),
    ]
    mend = "which is not installed: pip install 'distilljax[train]'"
    assert all(line.endswith(mend) for line in said)
    assert done.stderr.startswith("distilljax train: ")
    assert done.stderr.rstrip().endswith(mend)


def test_packages_of_single_uses_are_missed_there_alone():
    """Each is asked for where it is used, and the rest imports without it."""
    names = ("matplotlib", "orbax", "PIL", "sklearn", "tensorflow_datasets", "tqdm")
    script = """
    import numpy as np
    import distilljax
    from distilljax import api, bench, cards, data, evaluation, image_edits, pairs
    from distilljax.training import checkpoints

    for attempt in (
        data.digits,
        lambda: data.tfds("mnist", sample_shape=(28, 28, 1)),
        lambda: evaluation.save_png("x.png", np.zeros((2, 2), np.uint8)),
        lambda: evaluation.report_figure({}, {}, {}),
        lambda: evaluation.PixelClassifier.fit(
            np.zeros((2, 2, 2, 1)), np.arange(2)
        ),
        lambda: distilljax.fit(
            "flow_matching",
            networks=distilljax.networks.mlp((2,), width=8, hidden=8, blocks=1),
            source=data.arrays(np.zeros((8, 2), np.float32)),
            config={"cycles": 1, "batch_size": 4},
        ),
        checkpoints._reader,
    ):
        try:
            attempt()
        except ModuleNotFoundError as error:
            print(error)
    """
    done = without((*names, "grain"), script)
    assert done.returncode == 0, done.stderr
    found = [line.split(" needs the package ")[1] for line in done.stdout.splitlines()]
    wanted = ("sklearn", "tensorflow_datasets", "PIL", "matplotlib", "sklearn")
    for line, name in zip(found, (*wanted, "grain", "orbax"), strict=True):
        assert line == (
            f"{name}, which is not installed: pip install 'distilljax[train]'"
        )


@pytest.mark.parametrize(
    ("name", "mend"), [("wandb", "'distilljax[wandb]'"), ("elsewhere", "No module")]
)
def test_errors_of_imports(name, mend):
    with (
        pytest.raises(ModuleNotFoundError, match=mend.replace("[", r"\[")),
        extras.needed("a logger"),
    ):
        raise ModuleNotFoundError(f"No module named {name!r}", name=f"{name}.part")


def test_type_checkers_are_told_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for inner in node.body
        if isinstance(inner, ast.ImportFrom)
        for alias in inner.names
    }
    assert told | {"__version__"} == set(distilljax.__all__)
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.full
def test_pyright_sees_the_functions(tmp_path):
    """At its first call pyright fetches itself."""
    use = tmp_path / "use.py"
    use.write_text(
        "import distilljax\nreveal_type(distilljax.fit)\n"
        'distilljax.fit("scm", nets=1)\ndistilljax.fitt\n'
    )
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("pyright")),
            "--pythonpath",
            sys.executable,
            use.name,
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert '"(method: Method | str, *, networks: Network' in done.stdout, done.stderr
    assert 'No parameter named "nets"' in done.stdout
    assert '"fitt" is not a known attribute of module' in done.stdout
