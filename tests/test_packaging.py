"""The metadata, the pinned versions and the launch scripts agree with each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from distilljax import extras
from distilljax.__about__ import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = sorted((ROOT / "constraints").glob("constraints-*.txt"))
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
JAX_OF = {"3.11": "==0.10.*", "3.12": "==0.11.*"}


def requirements(extra: str | None = None) -> list[Requirement]:
    """The requirements of the library or of one extra, nested extras expanded."""
    lines = PROJECT["dependencies"]
    if extra is not None:
        lines = PROJECT["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                found += requirements(inner)
        else:
            found.append(requirement)
    return found


def pins(path: Path) -> dict[str, Version]:
    lines = [line for line in path.read_text().splitlines() if line[:1] != "#"]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def identity(path: Path) -> str:
    return path.name


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the launch scripts read, without an environment."""
    root = tmp_path / "a checkout"
    for folder in ("launch", "constraints"):
        shutil.copytree(ROOT / folder, root / folder)
    return root


def call(
    repository: Path, script: str, path: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a bash script in the copy with `path` as the only folder of commands."""
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, "-c", f"set -euo pipefail; source launch/_env.sh; {script}"],
        cwd=repository,
        env={"PATH": str(path), "HOME": str(repository), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def commands(folder: Path, **bodies: str) -> Path:
    """A folder with the few tools that the scripts use, and fake commands."""
    folder.mkdir()
    for tool in ("bash", "cat", "dirname", "mkdir", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    for name, body in bodies.items():
        fake = folder / name.replace("_", ".")
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(0o755)
    return folder


def test_version_is_said_once_and_installed():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert metadata.version("distilljax") == __version__ == str(Version(__version__))


def test_changelog_names_the_version():
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


def test_setup_py_is_bare():
    tree = ast.parse((ROOT / "setup.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [ast.unparse(node) for node in calls] == ["setup()"]


def test_console_script_names_the_cli():
    assert PROJECT["scripts"] == {"distilljax": "distilljax.cli:main"}


def test_license_is_apache():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


def test_losses_need_jax_and_numpy_alone():
    assert {requirement.name for requirement in requirements()} == {"jax", "numpy"}


def test_every_package_of_train_is_known_where_it_is_missing():
    imports = metadata.packages_distributions()
    for requirement in requirements("train"):
        names = [
            name
            for name, owners in imports.items()
            if canonicalize_name(requirement.name) in map(canonicalize_name, owners)
        ]
        assert any(extras.EXTRAS.get(name) == "train" for name in names), requirement


def test_the_package_is_the_tree_and_the_cards():
    """Packages are listed, since setuptools finds none that lies elsewhere."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    listed = setuptools["setuptools"]["packages"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "distilljax").rglob("*.py")
    }
    folders |= {
        ".".join(("distilljax", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "configs").rglob("*.py")
    }
    assert set(listed) == folders | {"distilljax.configs"}
    assert len(listed) == len(set(listed))


USE = """
import pathlib, distilljax
from distilljax import cards
package = pathlib.Path(distilljax.__file__).parent
found = cards.shipped()
assert all(path.is_relative_to(package) for path in found.values()), found
print(package, len(found), cards.load("digits/scm").method.name)
"""


def test_a_wheel_has_the_cards_and_the_mark_of_its_types(tmp_path):
    source, out, place = (tmp_path / name for name in ("source", "out", "place"))
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("distilljax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out.mkdir()
    build = "from setuptools import build_meta as b; b.build_wheel({!r})"
    made = subprocess.run(
        [sys.executable, "-c", build.format(str(out))],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    assert (place / "distilljax" / "py.typed").is_file()
    assert {path.name for path in place.iterdir()} == {
        "distilljax",
        f"distilljax-{__version__}.dist-info",
    }
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=out,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    cards = len(list((ROOT / "configs").glob("*/*.py")))
    assert done.stdout.split() == [str(place / "distilljax"), str(cards), "scm"], (
        done.stderr
    )


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_requirements_parse_and_nest(extra):
    found = requirements(extra)
    assert found
    assert all(requirement.url is None for requirement in found)
    names = [(canonicalize_name(r.name), *sorted(r.extras)) for r in found]
    assert len(names) == len(set(names))


def test_core_requirements_are_lower_bounds():
    for requirement in requirements():
        operators = [specifier.operator for specifier in requirement.specifier]
        assert operators == [">="], str(requirement)


def test_constraints_exist_for_every_tested_python():
    assert {path.name[12:-4] for path in CONSTRAINTS} == set(JAX_OF)
    assert all(
        version in SpecifierSet(PROJECT["requires-python"]) for version in JAX_OF
    )


@pytest.mark.parametrize("path", CONSTRAINTS, ids=identity)
def test_constraints_are_plain_sorted_pins(path):
    lines = [line for line in path.read_text().splitlines() if line[:1] != "#"]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line
    names = [line.split("==")[0].lower() for line in lines]
    assert names == sorted(set(names))


@pytest.mark.parametrize("extra", [None, "train", "test", "dev", "docs"])
@pytest.mark.parametrize("path", CONSTRAINTS, ids=identity)
def test_constraints_satisfy_the_requirements(path, extra):
    pinned = pins(path)
    for requirement in requirements(extra):
        version = pinned[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, str(requirement)


@pytest.mark.parametrize("path", CONSTRAINTS, ids=identity)
def test_constraints_hold_the_promised_jax(path):
    pinned = pins(path)
    allowed = SpecifierSet(JAX_OF[path.name[12:-4]])
    assert pinned["jax"] in allowed
    assert pinned["jaxlib"] in allowed


def test_constraints_cover_everything_that_the_installed_library_needs():
    """Walks the installed requirements, so that no transitive one stays unpinned."""
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = (
        ROOT / "constraints" / f"constraints-{minor if minor in JAX_OF else '3.12'}.txt"
    )
    pinned = pins(path)
    waiting, seen = (
        [(r.name, r.extras) for r in requirements("dev") + requirements()],
        set(),
    )
    while waiting:
        name, extras = waiting.pop()
        key = (canonicalize_name(name), frozenset(extras))
        if key in seen or key[0] in {"pip", "setuptools"}:
            continue
        seen.add(key)
        assert key[0] in pinned, f"{path.name} lacks {name}"
        for line in metadata.requires(name) or ():
            inner = Requirement(line)
            marker = inner.marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in (extras or {""})
            ):
                waiting.append((inner.name, inner.extras))
    assert len(seen) > len(requirements("dev"))


@pytest.mark.parametrize("path", SCRIPTS, ids=identity)
def test_scripts_parse(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=identity)
def test_scripts_to_be_called_are_executable_and_stop_at_failures(path):
    text = path.read_text()
    if path.name.startswith("_"):
        assert not text.startswith("#!")
    else:
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "pipefail" in text
        assert os.access(path, os.X_OK)


def test_no_python_is_an_error_that_lists_what_was_tried(repository, tmp_path):
    done = call(repository, "make_environment", commands(tmp_path / "bin"))
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        assert f"{name} does not run or is not installed" in done.stderr
    assert not (repository / ".venv").exists()


def test_an_old_python_is_passed_over_for_a_newer_one(repository, tmp_path):
    path = commands(
        tmp_path / "bin", python3="echo old 3.9.18", python3_12="echo ok 3.12.1"
    )
    done = call(repository, "find_python; echo $BASE_PYTHON", path)
    assert done.stdout == "python3.12\n", done.stderr


def test_a_named_python_is_never_replaced(repository, tmp_path):
    path = commands(tmp_path / "bin", mine="echo old 3.9.18", python3="echo ok 3.12.1")
    done = call(repository, "make_environment", path, PYTHON="mine")
    assert done.returncode == 1
    assert "mine is Python 3.9.18" in done.stderr


def test_a_python_without_ensurepip_names_the_mend(repository, tmp_path):
    path = commands(tmp_path / "bin", python3="echo novenv 3.11.2")
    done = call(repository, "make_environment", path)
    assert done.returncode == 1
    assert "cannot make a virtual environment" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_a_foreign_broken_environment_is_not_deleted(repository, tmp_path):
    kept = repository / ".venv" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    path = commands(tmp_path / "bin", python3="echo ok 3.12.1")
    done = call(repository, "make_environment", path)
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("version", "marks", "fault"),
    [
        ("3.12.1", {".made-for": "here"}, ""),
        ("3.12.1", {".made-for": "/elsewhere"}, "moved from another folder"),
        ("3.12.1", {".made-for": "here", ".installing": ""}, "left half-made"),
        ("3.10.4", {".made-for": "here"}, "of Python 3.10.4"),
        ("3.12.1", {}, ""),
        ("", {}, "broken"),
    ],
)
def test_an_environment_is_kept_only_when_whole(
    repository, tmp_path, version, marks, fault
):
    environment = repository / ".venv"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    for name, text in marks.items():
        (environment / name).write_text(text.replace("here", str(repository)))
    done = call(repository, "venv_fault", commands(tmp_path / "bin"))
    assert done.stdout.strip() == fault, done.stderr


@pytest.mark.parametrize(
    ("minor", "expected"),
    [
        (11, "constraints-3.11.txt"),
        (12, "constraints-3.12.txt"),
        (13, "constraints-3.12.txt (said)"),
        (15, "constraints-3.12.txt (said)"),
    ],
)
def test_the_nearest_tested_constraints_are_chosen(
    repository, tmp_path, minor, expected
):
    script = (
        f"fake() {{ echo {minor}; }}; VENV_PYTHON=fake; choose_constraints; "
        'echo "${CONSTRAINTS##*/}${UNTESTED:+ (said)}"'
    )
    done = call(repository, script, commands(tmp_path / "bin"))
    assert done.stdout.strip() == expected, done.stderr


def test_the_environment_has_what_training_needs(repository, tmp_path):
    """A stub of the interpreter writes down what pip is asked for."""
    script = (
        'fake() { echo "$@"; }; VENV_PYTHON=fake; VENV=$ROOT/v; mkdir -p "$VENV"; '
        "UNTESTED=; CONSTRAINTS=c; install_project '' s; install_project test s; "
        "cat v/install.log"
    )
    # The second install has replaced the first one's log.
    done = call(repository, script, commands(tmp_path / "bin"))
    assert done.stdout.splitlines()[-1].endswith(f"{repository}[train,test]")
    done = call(
        repository,
        script.replace("install_project test s", "true"),
        tmp_path / "bin",
    )
    assert done.stdout.splitlines()[-1].endswith(f"{repository}[train]"), done.stderr


def test_the_quick_start_passes_its_arguments_from_any_folder(repository, tmp_path):
    """A stub of make_environment puts `echo` in the place of the interpreter."""
    environment = repository / "launch" / "_env.sh"
    with environment.open("a") as file:
        file.write("make_environment() { VENV_PYTHON=echo; }\n")
    caller = tmp_path / "elsewhere"
    caller.mkdir()
    done = subprocess.run(
        [
            "bash",
            str(repository / "launch" / "quickstart.sh"),
            "--smoke",
            "--out",
            "a b",
            "--fresh",
            "--out=/c",
        ],
        cwd=caller,
        capture_output=True,
        text=True,
    )
    assert done.stdout == (
        f"-m distilljax quickstart --smoke --out {caller}/a b --fresh --out=/c\n"
    )
