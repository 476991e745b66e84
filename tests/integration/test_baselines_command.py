"""``pluralllm baselines``: every comparator on a small survey, as a table and as JSON."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pluralllm_fl.cli import app
from pluralllm_fl.config import app_directory
from pluralllm_fl.embedding.models import PACKAGED

pytestmark = pytest.mark.integration
pytest.importorskip(PACKAGED, reason="the extra 'offline' is not installed")

SMALL = {
    "synthetic-groups": 4, "synthetic-questions": 60, "unseen-fraction": 0.5, "width": 16,
    "layers": 1, "num-server-rounds": 2, "local-steps": 2, "coverage-features": 64,
}  # fmt: skip
LEARNED = ["local only", "centralised", "federated", "random embeddings"]
PUBLISHED = ["published, local only", "published, centralised", "published, federated"]


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, ["baselines", *settings, *arguments])
    assert "Traceback" not in result.output
    return result


def test_json_holds_every_comparator_scored_on_the_same_questions(tmp_path: Path) -> None:
    result = invoke("--published", "--json", "--seed", "1")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    rows = {row["name"]: row for row in found["comparators"]}
    assert list(rows)[-7:] == LEARNED + PUBLISHED
    assert found["seed"] == 1
    first = rows["uniform"]["unseen"]
    assert set(first["by_group"]) == set(found["unseen"])
    for row in rows.values():
        assert row["unseen"]["questions"] == first["questions"]
        assert row["unseen"]["uniform_by_group"] == first["uniform_by_group"]
        assert 0 < row["unseen"]["test_questions"]["alignment"] < 1
        assert row["seconds"] >= 0
    assert first["by_group"] == pytest.approx(first["uniform_by_group"])
    assert rows["federated"]["rounds"] == rows["published, federated"]["rounds"] == 2
    assert rows["federated"]["steps"] == rows["centralised"]["steps"] == 2
    assert rows["published, centralised"]["steps"] == 4
    assert {row["rounds"] for row in rows.values()} == {0, 2}
    assert list(tmp_path.iterdir()) == []


def test_the_published_recipe_reads_texts_by_its_own_template() -> None:
    """Its line is what its recipe gives by itself, to the last bit."""
    beside = json.loads(invoke("--published", "--json").stdout)["comparators"][-1]
    recipe = app_directory() / "recipes" / "published.toml"
    alone = json.loads(invoke("--recipe", str(recipe), "--json").stdout)["comparators"]
    (federated,) = [row for row in alone if row["name"] == "federated"]
    assert beside["name"] == "published, federated"
    assert beside["unseen"] == federated["unseen"]


def test_the_table_fits_a_terminal_and_leaves_the_published_recipe_out() -> None:
    result = invoke()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    names = ["uniform", "nearest question", "ridge probe", "MLP probe", "seen mean (oracle)"]
    for name in [*names, "agreement memory (oracle)", *LEARNED]:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert "published" not in result.stdout
    assert "training   federated" in result.stderr


def test_mistakes_are_told() -> None:
    result = invoke("--set", "learning-rat=1")
    assert result.exit_code == 2
    assert "Did you mean 'learning-rate'?" in result.output
    everyone = invoke("--set", "unseen-fraction=0")
    assert everyone.exit_code == 2
    assert "name some with --unseen" in everyone.output
