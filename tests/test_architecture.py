"""The house keeps its floors: imports run downward only, and bitsandbytes has one room."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "peftkit"
FLOORS = [
    ["__init__", "errors"],
    ["config"],
    ["files", "forwards", "internals", "labels", "recording", "random_state", "modes"],
    ["anatomy"],
    ["backbones"],
    ["lean"],
    ["methods"],
    ["adapters"],
    ["memory"],
    ["metrics"],
    ["data"],
    ["losses"],
    ["tasks"],
    ["training"],
    ["runs"],
    ["cli"],
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                [f"peftkit.{alias.name}" for alias in node.names]
                if node.module == "peftkit"
                else [node.module]
            )


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


def test_no_module_imports_itself_through_others():
    """Imports inside of functions do not count: they run when every module is there."""
    below = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        below[module] = set(top_level_imports(tree.body))
    sorter = graphlib.TopologicalSorter()
    for module, names in below.items():
        sorter.add(module, *(name for name in names if name in below and name != module))
    sorter.prepare()  # raises a CycleError that names the circle


def top_level_imports(body):
    """Yield the modules that a file imports when it is imported itself."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
            yield node.module


def test_comprehensions_stay_rare_enough_to_be_read():
    """At most 4 for each 100 statements: the loops of torchtune, PEFT and httpx are plain, too."""
    comprehensions = statements = 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            statements += isinstance(node, ast.stmt)
            kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
            comprehensions += isinstance(node, kinds)
    assert 100 * comprehensions <= 4 * statements


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports(path):
        if name.startswith("peftkit."):
            other = name.split(".")[1]
            is_public_name = other not in FLOOR_OF
            assert is_public_name or other == room or FLOOR_OF[other] <= FLOOR_OF[room], (
                f"{path} imports {name}"
            )
        if name.split(".")[0] == "bitsandbytes":
            assert room == "backbones", f"{path} imports bitsandbytes"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_can_be_seen_whole(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450, path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            assert node.end_lineno - first.lineno < 60, f"{path}: {node.name}"
