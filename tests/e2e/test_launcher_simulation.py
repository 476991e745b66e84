"""``python simulation.py`` as a user runs it: interrupt, resume, use the result, fail."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.embedding.models import PACKAGED
from tests.e2e.processes import mark, started, until

__all__ = ["mark"]

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "synthetic-groups=4", "synthetic-questions=40", "synthetic-respondents=50",
    "context-questions=5", "context-max=10", "width=16", "layers=1", "local-steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(PACKAGED, reason="the extra 'offline' is not installed")
    return tmp_path_factory.mktemp("simulation")


def simulate(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start simulation.py from a folder of its own, as the leader of a session."""
    settings = [*SMALL, "run-name=run", f"embedding-cache={folder / 'cache'}"]
    given = arguments if "--resume" in arguments else (*arguments, "--output-dir", "out")
    new = [] if "--resume" in arguments else [f"--set={setting}" for setting in settings]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "simulation.py"), *new, *given],
        cwd=folder, env={**os.environ, "COLUMNS": "200"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def pluralllm(*arguments: str) -> Any:
    """Run a command of ``pluralllm`` and return the JSON that it prints."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_interrupt_then_resume_then_use(folder: Path, mark: str) -> None:
    run = folder / "out" / "run"
    process = simulate(folder, "--rounds", "500")
    assert until(lambda: (run / "checkpoints" / "round-0001").exists() or process.poll(), 90)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert started(mark) == []
    assert f"python simulation.py --resume {run}" in errors
    assert "Traceback" not in errors
    interrupted = read(run / "run.json")
    assert interrupted["status"] == "interrupted"
    done = interrupted["completed_rounds"]
    assert done >= 1

    process = simulate(folder, "--resume", str(run), "--rounds", str(done + 2))
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert started(mark) == []
    finished = read(run / "run.json")
    assert (finished["status"], finished["completed_rounds"]) == ("completed", done + 2)
    assert f"Resuming with round {done + 1}." in shown
    assert f"round {done + 2}/{done + 2}  loss" in shown
    for group in (*finished["seen"], *finished["unseen"]):
        assert f"\n{group} " in shown
    assert "fairness: CoV" in shown
    assert str(run / "report.html") in shown
    assert (run / "report.html").is_file()
    assert "Starting Flower Simulation" in (run / "flower.log").read_text()
    assert [path.name for path in (folder / "out").iterdir()] == ["run"]

    use_the_result(folder, run, finished["unseen"][0])


def use_the_result(folder: Path, run: Path, group: str) -> None:
    answers = [
        {"group": group, "question": f"Do you like {thing}?", "options": ["Yes", "No"],
         "distribution": [share, 1 - share]}
        for thing, share in [("tea", 0.5), ("rain", 0.25), ("maps", 0.75), ("bread", 0.9)]
    ]  # fmt: skip
    context = folder / "answers.jsonl"
    context.write_text("\n".join(map(json.dumps, answers)))
    asked = ["--question", "Do you like music?", "--option", "Yes", "--option", "No"]
    found = pluralllm("predict", str(run), "--context", str(context), *asked, "--json")
    assert found["options"] == ["Yes", "No"]
    assert sum(found["distribution"]) == pytest.approx(1)
    scores = pluralllm(
        "evaluate", str(folder / "out"), "--dataset", str(context),
        "--context-questions", "2", "--json",
    )  # fmt: skip
    assert list(scores["unseen"]["by_group"]) == [group]


def test_failed_run_says_why(folder: Path, mark: str) -> None:
    missing = ["--set", "expected-nodes=9", "--set", "join-timeout=1", "--set", "run-name=short"]
    process = simulate(folder, *missing)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert started(mark) == []
    cause = read(folder / "out" / "short" / "run.json")["error"]
    assert cause.split(".")[0] in errors
    assert f"Flower's log: {folder / 'out' / 'short' / 'flower.log'}" in errors
    assert "Traceback" not in errors
