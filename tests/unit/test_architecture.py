"""The rooms of the package: who may know whom, and that docs/architecture.md tells it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import pluralllm_fl

PACKAGE = Path(pluralllm_fl.__file__).parent
WORDS = {"arrays", "config", "devices", "errors", "metrics", "preferences"}
FLOWER = {"wire", "strategies", "federation", "processes"}
LEAVES = {"cli", "report"}
PUBLIC_DOORS = {"app", "clientapp", "serverapp"}  # of Flower


def imports() -> Iterator[tuple[str, str]]:
    """Yield (room, imported module) of every import in the package, wherever it stands."""
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((room, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield room, node.module
                yield from ((room, f"{node.module}.{alias.name}") for alias in node.names)


def arrows() -> dict[str, set[str]]:
    rooms = {path.stem for path in PACKAGE.iterdir()} - {"__init__"}
    found = defaultdict(set)
    for room, module in imports():
        parts = module.split(".")
        if parts[0] == "pluralllm_fl" and len(parts) > 1 and parts[1] in rooms - {room}:
            found[room].add(parts[1])
    return found


def table() -> list[tuple[str, str]]:
    """Return room ('' for the root) and files of every line of the page's table."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (?:`(\w+/)`)? ?\| ([\w/, ]+) \|", page, re.MULTILINE)


def test_rooms_know_only_what_stands_below_them() -> None:
    order = [room.rstrip("/") or files for room, files in table()]
    place = {name: i for i, names in enumerate(order) for name in names.split(", ")}
    upwards = {
        (room, other)
        for room, others in arrows().items()
        for other in others
        if room != "__init__" and place[other] <= place[room] < len(order) - 1
    }
    assert upwards == set()


def test_rooms_know_few_others() -> None:
    """Every arrow is a room that a change may reach; a new one is worth a second look."""
    assert sum(map(len, arrows().values())) <= 115


def test_words_know_only_words() -> None:
    assert set().union(*(others for room, others in arrows().items() if room in WORDS)) <= WORDS


def test_the_predictor_knows_torch_and_the_words() -> None:
    assert arrows()["predictor"] <= WORDS


def test_nobody_builds_on_a_leaf() -> None:
    """`report` is drawn at the end of a run, so the command line may call it."""
    found = {(room, other) for room, others in arrows().items() for other in others & LEAVES}
    assert found == {("cli", "report")}


@pytest.mark.parametrize(("library", "rooms"), [
    ("flwr", FLOWER), ("ray", set()), ("transformers", {"embedding", "alignment"}),
    ("datasets", {"datasets", "alignment"}), ("trl", {"alignment"}), ("peft", {"alignment"}),
    ("typer", {"cli"}), ("jinja2", {"report", "deploy"}),
])  # fmt: skip
def test_libraries_stay_in_their_rooms(library: str, rooms: set[str]) -> None:
    assert {room for room, module in imports() if module.split(".")[0] == library} == rooms


def test_the_page_names_every_room_and_every_file() -> None:
    named = {f"{room}{file}.py" for room, files in table() for file in files.split(", ")}
    there = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == there


def private_imports(source: str) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import of Flower through another than a public door, in order."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if node.module != "flwr" else [f"flwr.{n}" for n in names]
        else:
            continue
        parts = [module.split(".") for module in modules]
        if any(part[0] == "flwr" and not PUBLIC_DOORS & {*part[1:2]} for part in parts):
            yield node


def without_end(source: str) -> list[int]:
    """Return the lines of private imports whose comment does not say until when.

    It stands on the import's own lines or right above; imports that follow each other share one.
    """
    lines = source.splitlines()
    nodes = sorted(private_imports(source), key=lambda node: node.lineno)
    taken = {n for node in nodes for n in range(node.lineno, (node.end_lineno or 0) + 1)}
    found = []
    for node in nodes:
        first = node.lineno
        while first - 1 in taken or (first > 1 and lines[first - 2].strip().startswith("#")):
            first -= 1
        text = lines[first - 1 : node.end_lineno]
        comments = " ".join(line.partition("#")[2].strip() for line in text if "#" in line)
        if not re.search(r"\b[Dd]elete\b.*\bwhen\b", comments):
            found.append(node.lineno)
    return found


FILES = sorted(PACKAGE.rglob("*.py"), key=str)


def test_private_doors_of_flower_say_until_when() -> None:
    missing = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in FILES
        if (lines := without_end(path.read_text(encoding="utf-8")))
    }
    assert missing == {}


def test_the_page_names_every_private_door_of_flower() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = " ".join(re.findall(r"^\| (`.*?) \|", page.partition("Private doors")[2], re.MULTILINE))
    doors = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in FILES
        if any(private_imports(path.read_text(encoding="utf-8")))
    }
    assert {door for door in doors if f"`{door}`" not in named} == set()
    assert len(doors) >= 6


@pytest.mark.parametrize(("source", "lines"), [
    ("from flwr.app import Message\nimport flwr.serverapp.strategy as stock", []),
    ("from flwr import app", []),
    ("from flwr.supercore.run import Run", [1]),
    ("import flwr", [1]),
    ("from flwr import common", [1]),
    ("import os, flwr.proto.node_pb2", [1]),
    ("def f():\n    from flwr.proto import x", [2]),
    ("# A type. Delete when it is public.\nfrom flwr.supercore.run import Run", []),
    ("# Delete this file\n# when it is public.\nfrom flwr.supercore.run import Run", []),
    ("from flwr.supercore.run import Run  # delete when it is public", []),
    ("# Delete when both are.\nfrom flwr.a import A\nfrom flwr.b import (\n    B,\n)", []),
    ("# It is needed.\nfrom flwr.supercore.run import Run", [2]),
    ("# Delete when it is public.\n\nfrom flwr.supercore.run import Run", [3]),
    ("# Delete when it is.\nfrom flwr.a import A\nimport os\nfrom flwr.b import B", [4]),
])  # fmt: skip
def test_an_import_without_an_end_is_found(source: str, lines: list[int]) -> None:
    assert without_end(source) == lines
