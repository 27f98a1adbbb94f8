"""Imports point down the floors, and a loss is cheap to import."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

from distilljax.runtime.extras import EXTRAS

PACKAGE = Path(__file__).resolve().parents[1] / "distilljax"

# An oracle makes a network on request; nothing else looks up.
LAZY_EXCEPTIONS = {("diffusion", "core")}
# jax itself imports etils where it is there.
FOREIGN = (*(name for name in EXTRAS if name != "etils"), "tensorflow")


def modules():
    """``(dotted parts below distilljax, syntax tree)`` of every file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts not in {("__init__",), ("__about__",)}:
            yield parts, ast.parse(file.read_text())


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def resolve(module, name):
    """The module that ``from module import name`` reads."""
    folder = PACKAGE.joinpath(*module.split(".")[1:])
    is_module = (folder / f"{name}.py").exists() or (folder / name).is_dir()
    return f"{module}.{name}" if is_module else module


def imports(tree, lazy=False):
    """``(module, whether inside a function)`` of imports from distilljax."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        inner = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "distilljax":
                    yield alias.name, lazy
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] == "distilljax":
                for alias in node.names:
                    yield resolve(node.module, alias.name), lazy
        else:
            yield from imports(node, inner)


def declared():
    """What the modules of every floor may import, as its ``__init__`` says."""
    found = {}
    for parts, tree in modules():
        if len(parts) == 2 and parts[1] == "__init__":
            (value,) = (
                node.value
                for node in tree.body
                if isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "IMPORTS"
            )
            found[parts[0]] = ast.literal_eval(value)
    return found


def test_every_module_stands_on_a_floor():
    floors = {parts[0] for parts, _ in modules() if parts != ("__main__",)}
    assert floors == declared().keys()


def test_floors_point_one_way():
    """No floor imports one that imports it."""
    list(graphlib.TopologicalSorter(declared()).static_order())


def test_imports_are_absolute():
    for parts, tree in modules():
        relative = [
            n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level
        ]
        assert not relative, parts


def test_modules_import_what_their_floor_may():
    floors, wrong, used = declared(), [], set()
    for parts, tree in modules():
        for target, lazy in imports(tree):
            name = target.split(".")[1] if "." in target else ""
            if name.startswith("_") or name == parts[0] or parts == ("__main__",):
                continue
            if lazy and (parts[0], name) in LAZY_EXCEPTIONS:
                continue
            used.add((parts[0], name))
            # By its full name: the front's short ones hide the floor.
            if name not in floors[parts[0]]:
                wrong.append(f"{'.'.join(parts)} imports {target}")
    assert not wrong
    assert used == {(floor, name) for floor in floors for name in floors[floor]}


def test_imports_have_no_cycle():
    known = {".".join(parts) for parts, _ in modules()}
    graph = {}
    for parts, tree in modules():
        targets = {
            t.removeprefix("distilljax.") for t, lazy in imports(tree) if not lazy
        }
        own = ".".join(parts)
        found = {t if t in known else f"{t}.__init__" for t in targets}
        graph[own] = (found & known) - {own}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_check_sees_a_wrong_import():
    source = (
        "def f():\n    from distilljax.training import loop\nimport distilljax.paths"
    )
    found = list(imports(ast.parse(source)))
    assert found == [
        ("distilljax.training.loop", True),
        ("distilljax.paths", False),
    ]
    checked = "if TYPE_CHECKING:\n    from distilljax.binding import Network"
    assert not list(imports(ast.parse(checked)))


SCRIPT = f"""
import sys, time
import jax, numpy
before = set(sys.modules)
start = time.perf_counter()
import distilljax.losses
seconds = time.perf_counter() - start
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
loaded = {{name.split(".")[0] for name in sys.modules}}
print(seconds, sorted(loaded & set({FOREIGN!r})), sorted(new - sys.stdlib_module_names))
"""


def test_importing_a_loss_loads_jax_and_numpy_only():
    best = float("inf")
    for _ in range(5):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=PACKAGE.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, foreign = run.stdout.split(" ", 1)
        assert foreign.strip() == "[] ['distilljax']"
        best = min(best, float(seconds))
        if best <= 0.2:
            break
    assert best <= 0.2
