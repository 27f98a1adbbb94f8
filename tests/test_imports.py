"""Imports point down the floors, and a loss is cheap to import."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

from distilljax.extras import EXTRAS

PACKAGE = Path(__file__).resolve().parents[1] / "distilljax"

# Each line imports from its own line and the lines above it.
FLOORS = (
    ("errors", "extras", "labels", "storage", "axes", "shares", "terminal"),
    ("promotion",),
    ("paths", "predictions", "fields", "flow_maps", "solvers", "times", "clocks"),
    ("metrics", "corrections", "transforms"),
    ("losses",),
    ("oracles", "sampling", "draws", "editing", "adapters"),
    ("binding", "context", "method", "composition", "methods"),
    ("kernels",),
    ("networks",),
    ("data",),
    ("evaluation",),
    ("training",),
    ("interop",),
    ("specs", "releases", "players"),
    ("generation", "diagnosis", "cards", "overrides", "taught"),
    ("recipes", "ahead", "api", "hints"),
    ("image_edits", "judge", "looking", "pairs", "quickstart", "starting"),
    ("bench",),
    ("commands", "cli", "__main__"),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
# An oracle makes a network on request; nothing else looks up.
LAZY_EXCEPTIONS = {("oracles", "binding")}
# jax itself imports etils where it is there.
FOREIGN = (*(name for name in EXTRAS if name != "etils"), "tensorflow")


def modules():
    """``(dotted parts below distilljax, syntax tree)`` of every file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts not in {("__init__",), ("_version",)}:
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


def test_every_module_stands_on_a_floor():
    assert {parts[0] for parts, _ in modules()} <= set(FLOOR)


def test_imports_are_absolute():
    for parts, tree in modules():
        relative = [
            n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level
        ]
        assert not relative, parts


def test_imports_point_down_the_floors():
    wrong = []
    for parts, tree in modules():
        for target, lazy in imports(tree):
            name = target.split(".")[1] if "." in target else ""
            if name.startswith("_") or name not in FLOOR:
                continue
            allowed = lazy and (parts[0], name) in LAZY_EXCEPTIONS
            if FLOOR[name] > FLOOR[parts[0]] and not allowed:
                wrong.append(f"{'.'.join(parts)} imports {target}")
    assert not wrong


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
    assert found == [("distilljax.training.loop", True), ("distilljax.paths", False)]
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
