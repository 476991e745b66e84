"""The main job for real: simulation.py and `flwr run`, their artefacts and what uses them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pluralllm_fl import Pluralist
from pluralllm_fl.cli import app
from pluralllm_fl.evaluation.opening import open_run
from tests.e2e.flower import (
    BIN,
    ROOT,
    end_superlink,
    flower_environment,
    flwr,
    only_run,
    read,
)
from tests.e2e.processes import mark, started, until
from tests.integration.inprocess import in_this_process
from tests.survey import first_answers

__all__ = ["mark"]

SMALL = {
    "synthetic-groups": 6, "synthetic-questions": 80, "num-server-rounds": 3, "local-steps": 15,
    "question-features": 64, "width": 32, "feed-forward": 32,
}  # fmt: skip


STRATEGY = """
from pathlib import Path

from flwr.serverapp.strategy import FedAvg


class Mine(FedAvg):
    def aggregate_train(self, server_round, replies):
        with Path(__file__).with_name("rounds.txt").open("a") as file:
            file.write(f"{server_round} ")
        return super().aggregate_train(server_round, replies)
"""
ASSIGNMENTS = [f"--set={key}={value}" for key, value in SMALL.items()]


def simulate(
    output: Path, *options: str, new: bool = True, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run simulation.py to its end; a new run is a small one that writes to `output`."""
    settings = ["--output-dir", str(output), *ASSIGNMENTS] if new else []
    result = subprocess.run(
        [sys.executable, str(ROOT / "simulation.py"), *settings, *options],
        capture_output=True, text=True, cwd=output, timeout=280,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert "Traceback" not in result.stdout + result.stderr
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module", autouse=True)
def module_mark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Mark what the fixtures start; begin with a cold embedding cache: bits from earlier versions
    must not decide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLURALLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PLURALLM_TEST_MARK", "simulation-" + uuid.uuid4().hex)
        yield os.environ["PLURALLM_TEST_MARK"]


@dataclass
class Interrupted:
    """What an interrupted simulation said and left."""

    run: Path
    text: str
    code: int
    running: list[str]
    record: dict[str, Any]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, module_mark: str) -> Interrupted:
    """A small simulation that is interrupted after a round.

    Its strategy lies in the working folder, and is FedAvg but for the rounds that it writes down.
    """
    output = tmp_path_factory.mktemp("first")
    (output / "my_strategy.py").write_text(STRATEGY)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "simulation.py"), "--output-dir", str(output), *ASSIGNMENTS,
         "--set=strategy=my_strategy:Mine"], cwd=output,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
        # A shell that runs the tests in its background lets them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    saved = until(
        lambda: list(output.glob("*/checkpoints/round-0001")) or process.poll() is not None, 250
    )
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # who sends two at once does not cut the clean-up short
    text = process.communicate(timeout=60)[0]
    assert saved, text
    run = only_run(output)
    return Interrupted(run, text, process.returncode, started(module_mark), read(run / "run.json"))


@pytest.fixture(scope="module")
def run(interrupted: Interrupted, module_mark: str) -> Path:
    """The same run, resumed to its end once for all tests that only read it."""
    output = interrupted.run.parent
    done = simulate(output, "--resume", str(interrupted.run), new=False)
    assert started(module_mark) == []
    (output / "stdout.txt").write_text(done.stdout)
    return interrupted.run


def test_artefacts_are_complete_and_agree(run: Path) -> None:
    summary = read(run / "summary.json")
    assert (summary["status"], summary["rounds"]) == ("completed", 3)
    assert min(summary[k] for k in ("wall_seconds", "bytes_up", "bytes_down")) > 0
    groups = {side: set(summary[side]["by_group"]) for side in ("seen", "unseen")}
    assert len(groups["seen"] | groups["unseen"]) == 6
    assert not groups["seen"] & groups["unseen"]
    for side in ("seen", "unseen"):
        for block in (summary[side], summary[side]["test_questions"]):
            scores = list(block["by_group"].values())
            assert block["alignment"] == pytest.approx(sum(scores) / len(scores))
            assert block["min"] == min(scores)
            for key in ("alignment_micro", "cov", "fairness_index_cov2", "fairness_index_cov"):
                assert 0 <= block[key] <= 1
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e["round"] for e in events if e["event"] == "round"] == [1, 2, 3]
    last = [e for e in events if e["event"] == "evaluation"][-1]
    assert last["unseen"] == summary["unseen"]
    recorded = read(run / "run.json")
    assert (recorded["status"], recorded["completed_rounds"]) == ("completed", 3)
    assert (run / "report.html").stat().st_size > 10_000
    printed = (run.parent / "stdout.txt").read_text()
    assert all(f"{summary['unseen']['by_group'][g]:.4f}" in printed for g in groups["unseen"])
    assert "report.html" in printed


def test_a_custom_strategy_from_the_working_folder(run: Path) -> None:
    assert read(run / "run.json")["config"]["strategy"] == "my_strategy:Mine"
    rounds = (run.parent / "rounds.txt").read_text().split()
    assert sorted(set(rounds)) == ["1", "2", "3"]  # the interrupted one may be there twice


def test_learning_beats_the_uniform_guess(run: Path) -> None:
    unseen = read(run / "summary.json")["unseen"]
    assert unseen["alignment"] > unseen["uniform"] + 0.01


def test_evaluating_the_saved_model_gives_the_federations_numbers(run: Path) -> None:
    """Nodes scored with messages; `pluralllm evaluate` scores locally: same model, same numbers."""
    summary = read(run / "summary.json")
    names = ";".join(summary["unseen"]["by_group"])
    result = subprocess.run(
        [BIN / "pluralllm", "evaluate", run, "--dataset", "synthetic", "--groups", names, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    block = json.loads(result.stdout)["unseen"]
    assert block["by_group"] == pytest.approx(summary["unseen"]["by_group"], abs=1e-6)
    assert block["test_questions"]["alignment"] == pytest.approx(
        summary["unseen"]["test_questions"]["alignment"], abs=1e-6
    )


POLICY = """
from flwr.serverapp import ServerApp

from pluralllm_fl.federation.rewarding import FederatedReward

app = ServerApp()


@app.main()
def main(grid, context):
    reward = FederatedReward.open(grid, context)
    print("Found", reward(["Do you like tea?"] * 2, ["Yes", "B"], options=[["Yes", "No"]] * 2))
"""


def test_the_groups_of_a_finished_run_reward_a_policy(run: Path, tmp_path: Path) -> None:
    """The policy's script is the server's side; each group scores with some of its answers."""
    script = tmp_path / "policy.py"
    script.write_text(POLICY)
    before = read(run / "run.json")
    done = subprocess.run(
        [BIN / "pluralllm", "align", "federated", run, script], capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    workspace, _ = open_run(run)
    shown = workspace.config.context_questions
    pluralist = Pluralist.from_pretrained(run)
    each = [
        pluralist.fit(first_answers(workspace.dataset.groups[name], shown))
        for name in workspace.groups
    ]
    asked = [("Do you like tea?", ("Yes", "No"))]
    expected = np.mean([group.predict_log_proba(asked)[0] for group in each], axis=0)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Found ")]
    found = json.loads(line.removeprefix("Found "))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert read(run / "run.json") == before


def test_evaluate_another_file_from_the_output_folder(run: Path, tmp_path: Path) -> None:
    shares = {"tea": 0.5, "rain": 0.25, "maps": 0.75, "bread": 0.9}
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "\n".join(
            json.dumps(
                {"group": "Newland", "question": f"Do you like {thing}?", "options": ["Yes", "No"],
                 "distribution": [share, 1 - share]}
            )
            for thing, share in shares.items()
        )
    )  # fmt: skip
    command = ["evaluate", str(run.parent), "--dataset", str(answers), "--json"]
    result = CliRunner().invoke(app, [*command, "--context-questions", "2"])
    assert result.exit_code == 0, result.output
    block = json.loads(result.stdout)["unseen"]
    assert list(block["by_group"]) == ["Newland"]
    assert block["questions"] == {"Newland": 2}
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "'Newland'" in result.stderr
    assert "needs at least 21" in result.stderr


def test_predict_from_the_terminal_and_from_python_agree(run: Path, tmp_path: Path) -> None:
    from pluralllm_fl.inference import Pluralist

    answers = tmp_path / "answers.jsonl"
    row = {"group": "mine", "question": "Do you trust the press?", "options": ["Yes", "No"]}
    answers.write_text(json.dumps({**row, "distribution": [0.3, 0.7]}) + "\n")
    command = ["predict", str(run), "--context", str(answers)]
    command += ["--question", "Do you trust the courts?", "--option", "Yes", "--option", "No"]
    shown, told = (CliRunner().invoke(app, [*command, *more]) for more in ([], ["--json"]))
    distribution = json.loads(told.stdout)["distribution"]
    assert sum(distribution) == pytest.approx(1)
    assert f"{100 * distribution[0]:.1f}%" in shown.stdout
    group = Pluralist.from_pretrained(run).fit(
        {("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)}
    )
    assert group.predict("Do you trust the courts?", ["Yes", "No"]) == pytest.approx(
        distribution, abs=1e-6
    )


def test_interrupt_is_told_and_leaves_nothing_running(interrupted: Interrupted) -> None:
    assert interrupted.code == 130, interrupted.text
    assert interrupted.running == []
    assert "Traceback" not in interrupted.text
    assert f"python simulation.py --resume {interrupted.run}" in interrupted.text
    assert interrupted.record["status"] == "interrupted"


def test_a_resumed_run_goes_on_where_it_was(interrupted: Interrupted, run: Path) -> None:
    done = interrupted.record["completed_rounds"]
    assert f"Resuming with round {done + 1}." in (run.parent / "stdout.txt").read_text()
    assert "Starting Flower Simulation" in (run / "flower.log").read_text()


def test_resumed_run_has_the_bits_of_an_undisturbed_flwr_run(run: Path, tmp_path: Path) -> None:
    """Same seed, other processes, no interruption, FedAvg by its own name."""
    weights = (run / "model" / "model.safetensors").read_bytes()
    # A cold cache: now the nodes embed, with one thread, and not the launcher.
    own = {"output-dir": str(tmp_path / "flwr"), "embedding-cache": str(tmp_path / "cache")}
    other = flwr_run(tmp_path, {**SMALL, **own}, supernodes=6)
    assert other == "finished:completed"
    found = only_run(tmp_path / "flwr")
    assert (found / "model" / "model.safetensors").read_bytes() == weights
    assert read(found / "summary.json")["unseen"] == read(run / "summary.json")["unseen"]
    here = in_this_process(run, tmp_path / "here", strategy="fedavg")
    assert (here / "model" / "model.safetensors").read_bytes() == weights


def test_a_reader_that_leaves_ends_the_run_with_a_word(
    run: Path, tmp_path: Path, mark: str
) -> None:
    assert run.is_dir()  # its options are embedded
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "simulation.py"), "--output-dir", str(tmp_path), *ASSIGNMENTS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    while not process.stdout.readline().startswith("output"):
        pass
    process.stdout.close()
    with process.stderr as errors:
        said = errors.read()
    assert process.wait(60) == 130
    assert said.startswith("Interrupted: nobody reads the output any more (as after `| head`).")
    assert "Traceback" not in said
    assert started(mark) == []


def test_failed_run_says_why_and_leaves_nothing_running(tmp_path: Path, mark: str) -> None:
    result = simulate(
        tmp_path, "--set=expected-nodes=9", "--set=join-timeout=1", "--set=run-name=short",
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert started(mark) == []
    cause = read(tmp_path / "short" / "run.json")["error"]
    assert cause.split(".")[0] in result.stderr
    assert f"Flower's log: {tmp_path / 'short' / 'flower.log'}" in result.stderr


def test_real_survey(shared_data: Path, tmp_path: Path) -> None:
    """Two short rounds on the real survey: the paper's groups by default, better than uniform."""
    with (shared_data / "global_opinions" / "global_opinions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    # Some questions, in a stable order: embedding all of them takes minutes.
    kept = [row for row in rows if zlib.crc32(row[header.index("question")].encode()) % 12 == 0]
    with (tmp_path / "global_opinions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    simulate(
        tmp_path, f"--dataset={file.name}", "--rounds=2", "--set=local-steps=10",
        f"--output-dir={tmp_path}", new=False,
    )  # fmt: skip
    summary = read(only_run(tmp_path) / "summary.json")
    assert (len(summary["seen"]["by_group"]), len(summary["unseen"]["by_group"])) == (8, 6)
    assert summary["unseen"]["uniform"] == pytest.approx(0.65, abs=0.02)
    assert summary["unseen"]["alignment"] > summary["unseen"]["uniform"] + 0.03


def flwr_run(folder: Path, config: dict[str, Any], supernodes: int) -> str:
    """Run the app through Flower's own command line; return the run's true status."""
    environment = flower_environment(folder / "home")
    text = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    resources = f"num-supernodes={supernodes} client-resources-num-cpus=1"
    options = ["--stream", "--run-config", text, "--federation-config", resources]
    try:
        flwr(ROOT, environment, "run", str(ROOT), *options)
        listed = json.loads(flwr(ROOT, environment, "list", "--format", "json"))
        return str(listed["runs"][0]["status"])
    finally:
        end_superlink(environment)
