"""The import graph keeps the layers of docs/design.md: data flows one way, and so do imports."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"types", "version", "files", "mesh", "output"},
    {"settings"},
    {"ops", "models"},
    {"data"},
    {"federated", "llm"},
    {"methods"},
    {"evaluation"},
    {"training"},
    {"serving", "search", "report"},
    {"service", "deployment"},
    {"cli"},
    {"__init__", "__main__"}
    | {"train", "sweep", "recommend", "similar", "serve", "compare", "export"}
    | {"coordinate", "participate"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FRONT = {"jaxrec.data.__main__", "jaxrec.report.__main__"}  # `python -m` looks for them there


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in package.rglob("*.py")
    }


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules among `known` that a file imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in whole}
    return found & known


@pytest.fixture(scope="module")
def graph():
    known = modules(ROOT / "jaxrec")
    return {name: imports(path, set(known)) - {name} for name, path in known.items()}


def layer(module: str) -> int:
    """The level of a module: that of the package or file right below jaxrec."""
    parts = module.split(".")
    return LEVEL["__init__" if len(parts) == 1 else parts[1]]


def test_each_part_of_the_house_has_a_layer():
    parts = {path.stem for path in (ROOT / "jaxrec").glob("*.py")}
    parts |= {path.parent.name for path in (ROOT / "jaxrec").glob("*/__init__.py")}
    assert parts == set(LEVEL)


def test_nothing_imports_what_stands_above_it(graph):
    upward = [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if name not in FRONT and layer(other) > layer(name)
    ]
    assert upward == []


def test_packages_of_one_layer_leave_each_other_alone(graph):
    """But for the lowest one, and `models`, which are made of `ops`."""
    allowed = {("models", "ops"), ("report", "serving")}
    part = lambda module: [*module.split("."), "__init__"][1]
    across = [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if layer(name) == layer(other) and 0 < layer(name) < len(LAYERS) - 1
        if part(name) != part(other) and (part(name), part(other)) not in allowed
    ]
    assert across == []


def test_there_is_no_cycle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_a_cycle_and_a_lazy_import_are_seen(tmp_path):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("def f():\n    from house import two\n")
    (package / "two.py").write_text("from house.one import f\n")
    known = modules(package)
    graph = {name: imports(path, set(known)) for name, path in known.items()}
    assert graph == {"house": set(), "house.one": {"house.two"}, "house.two": {"house.one"}}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_an_import_changes_nothing():
    """It leaves the environment and JAX's settings alone, and looks for no device."""
    code = (
        "import os, jax\n"
        "environment, settings = dict(os.environ), dict(jax.config.values)\n"
        "import jaxrec, jaxrec.cli.train, jaxrec.methods.fedcia, jaxrec.methods.llmd4rec\n"
        "assert dict(os.environ) == environment\n"
        "assert dict(jax.config.values) == settings\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | flags
    )
    assert done.returncode == 0, done.stderr


def test_every_function_fits_on_a_screen():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}, {node.end_lineno - node.lineno + 1}"
        for path in sorted((ROOT / "jaxrec").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno >= 80
    ]
    assert long == []
