"""The rules of docs/architecture.md that import-linter's contracts in pyproject.toml do not cover."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from trainer.models.catalog import CARDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("trainer", "serving")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Each module's dotted name and its file."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


def imports(path: Path, known: set[str]) -> Iterator[str]:
    """The modules among `known` that a file imports, in functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from package import module` imports the module; `from package import name` the package
            names = [
                full if (full := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name in known)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, directly or through others (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in graph[module]:
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1:
                found.append(sorted(members))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_circles_finds_a_circle_through_several_modules() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == []


def test_no_file_takes_part_in_an_import_circle() -> None:
    files = modules()
    known = set(files)
    graph = {module: set(imports(path, known)) - {module} for module, path in files.items()}
    assert circles(graph) == []


_DISTRIBUTIONS = {
    "PIL": "pillow",
    "aiohttp": "fsspec",  # of its extra http
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""The distributions of modules that are named otherwise."""


def third_party_modules(path: Path) -> Iterator[str]:
    """The top-level names of packages of others that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        yield from ({name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES})


def test_every_imported_package_is_a_declared_dependency() -> None:
    """None is only there because another package happens to require it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    of_users = [text for name in extras.keys() - {"test", "dev", "bench"} for text in extras[name]]
    declared = {
        re.match(r"[\w-]+", text)[0].replace("_", "-") for text in (*project["dependencies"], *of_users)
    }
    imported = {name for path in modules().values() for name in third_party_modules(path)}
    distributions = {_DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in imported}
    assert distributions - declared == set()


def test_layers_name_every_room_on_at_most_ten_floors() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert len(layers) <= 10
    named = {name.strip(" ()") for layer in layers for name in layer.replace("|", ":").split(":")}
    rooms = {
        f"trainer.{path.stem}"
        for path in (ROOT / "trainer").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.stem.startswith("__")
    }
    assert rooms | {"serving"} == named


def test_architecture_page_has_the_floors_and_rooms_of_the_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    floors = re.findall(r"^\| \d+ \| (.*?) \|", page, re.MULTILINE)
    for layer, floor in zip(layers, floors, strict=True):
        rooms = {name.strip().removeprefix("trainer.") for name in layer.split(":")}
        assert set(re.findall(r"`(\w+)`", floor)) == rooms
    packages = {f"trainer/{path.parent.name}/" for path in (ROOT / "trainer").glob("*/__init__.py")}
    assert {name for name in packages if f"| `{name}` |" not in page} == set()


def test_only_models_name_a_family() -> None:
    naming = {
        (module, node.value)
        for module, path in modules().items()
        if not module.startswith("trainer.models")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in CARDS
    }
    assert naming == set()


def test_every_file_can_be_read_in_one_sitting() -> None:
    lengths = {module: len(path.read_text("utf-8").splitlines()) for module, path in modules().items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def test_architecture_page_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    names = {name for name in re.findall(r"`([\w./]+)`", page) if name.endswith((".py", "/"))}
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")]
    places = [f"/{file}" for file in files] + [f"/{file.rpartition('/')[0]}/" for file in files]
    placeholders = {"trainer/models/NAME.py", "trainer/models/cards/NAME.py"}
    missing = {name for name in names - placeholders if not any(f"/{name}" in place for place in places)}
    assert missing == set()
