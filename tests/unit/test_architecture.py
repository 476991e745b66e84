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
