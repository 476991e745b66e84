"""`pluralllm align federated`: what cannot be run is refused before anything starts."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pluralllm_fl.cli import app
from pluralllm_fl.config import default_run_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    record = {"status": "completed", "mode": "simulation", "config": default_run_config()}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def align(run: Path, script: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["align", "federated", str(run), str(script), *more])


def test_an_unfinished_run_has_no_model(run: Path) -> None:
    record = json.loads((run / "run.json").read_text()) | {"status": "interrupted"}
    (run / "run.json").write_text(json.dumps(record))
    answer = align(run, Path(__file__))
    assert answer.exit_code == 1
    assert "interrupted, not completed" in " ".join(answer.output.split())


def test_a_script_or_key_that_is_not_there_is_named(run: Path) -> None:
    answer = align(run, run / "polcy.py")
    assert answer.exit_code == 2
    assert "does not exist" in answer.output
    answer = align(run, Path(__file__), "--set", "expected-node=3")
    assert answer.exit_code == 2
    assert "Did you mean 'expected-nodes'?" in answer.output
