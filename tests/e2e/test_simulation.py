"""The main job for real: simulation.py and `flwr run`, their artefacts and what uses them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = {
    "synthetic-groups": 6, "synthetic-questions": 120, "num-server-rounds": 3, "local-steps": 15,
    "width": 64, "latent": 8,
}  # fmt: skip


def simulate(
    output: Path, *options: str, small: bool = True, check: bool = True
) -> subprocess.CompletedProcess[str]:
    assignments = [f"--set={key}={value}" for key, value in SMALL.items()] if small else []
    result = subprocess.run(
        [
            sys.executable, str(ROOT / "simulation.py"), "--output-dir", str(output),
            *assignments, *options,
        ],
        capture_output=True, text=True, cwd=output, timeout=280,
    )  # fmt: skip
    assert "Traceback" not in result.stdout + result.stderr
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def only_run(output: Path) -> Path:
    (run,) = (path.parent for path in output.glob("*/run.json"))
    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small finished run, simulated once for all tests that only read it."""
    output = tmp_path_factory.mktemp("first")
    (output / "stdout.txt").write_text(simulate(output).stdout)
    return only_run(output)


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


def test_predict_from_the_terminal_and_from_python_agree(run: Path, tmp_path: Path) -> None:
    from pluralllm_fl.inference import Pluralist

    answers = tmp_path / "answers.jsonl"
    row = {"group": "mine", "question": "Do you trust the press?", "options": ["Yes", "No"]}
    answers.write_text(json.dumps({**row, "distribution": [0.3, 0.7]}) + "\n")
    command = [BIN / "pluralllm", "predict", run, "--context", answers]
    command += ["--question", "Do you trust the courts?", "--option", "Yes", "--option", "No"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    distribution = json.loads(told.stdout)["distribution"]
    assert sum(distribution) == pytest.approx(1)
    assert f"{100 * distribution[0]:.1f}%" in shown.stdout
    group = Pluralist.load(run).condition({("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)})
    assert group.predict("Do you trust the courts?", ["Yes", "No"]) == pytest.approx(
        distribution, abs=1e-6
    )


def test_same_seed_same_bits_also_through_flwr_run(run: Path, tmp_path: Path) -> None:
    weights = (run / "model" / "model.safetensors").read_bytes()
    (tmp_path / "again").mkdir()
    simulate(tmp_path / "again")
    assert (only_run(tmp_path / "again") / "model" / "model.safetensors").read_bytes() == weights
    other = flwr_run(tmp_path, {**SMALL, "output-dir": str(tmp_path / "flwr")}, supernodes=6)
    assert other == "finished:completed"
    found = only_run(tmp_path / "flwr")
    assert (found / "model" / "model.safetensors").read_bytes() == weights
    assert read(found / "summary.json")["unseen"] == read(run / "summary.json")["unseen"]


def test_wrong_number_of_supernodes_names_the_right_command(tmp_path: Path) -> None:
    config = {**SMALL, "output-dir": str(tmp_path / "flwr")}
    assert flwr_run(tmp_path, config, supernodes=3) == "finished:failed"
    error = read(only_run(tmp_path / "flwr") / "run.json")["error"]
    assert "num-supernodes=6" in error


def test_interrupt_then_resume_ends_bit_identical(run: Path, tmp_path: Path) -> None:
    assignments = [f"--set={key}={value}" for key, value in SMALL.items()]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "simulation.py"), "--output-dir", str(tmp_path), *assignments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/round-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    if process.returncode == 0:
        pytest.skip("the run ended before the interrupt reached it")
    assert process.returncode == 130, text
    assert "--resume" in text
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    interrupted = only_run(tmp_path)
    assert read(interrupted / "run.json")["status"] == "interrupted"
    subprocess.run(
        [sys.executable, str(ROOT / "simulation.py"), "--resume", str(interrupted)], check=True,
        capture_output=True,
    )  # fmt: skip
    resumed, whole = (load_file(r / "model" / "model.safetensors") for r in (interrupted, run))
    assert all((resumed[name] == whole[name]).all() for name in whole)
    assert read(interrupted / "summary.json")["unseen"] == read(run / "summary.json")["unseen"]


def test_a_custom_strategy_by_import_path(tmp_path: Path) -> None:
    simulate(tmp_path, "--set=strategy=flwr.serverapp.strategy:FedMedian", "--rounds", "1")
    run = only_run(tmp_path)
    assert read(run / "run.json")["config"]["strategy"].endswith("FedMedian")
    assert read(run / "summary.json")["status"] == "completed"


def test_real_survey(shared_data: Path, tmp_path: Path) -> None:
    """Two short rounds on the real survey: the paper's groups by default, better than uniform."""
    path = shared_data / "global_opinions" / "global_opinions.csv"
    simulate(
        tmp_path, "--dataset", str(path), "--rounds", "2", "--set", "local-steps=10", small=False
    )
    summary = read(only_run(tmp_path) / "summary.json")
    assert (len(summary["seen"]["by_group"]), len(summary["unseen"]["by_group"])) == (8, 6)
    assert summary["unseen"]["uniform"] == pytest.approx(0.65, abs=0.01)
    assert summary["unseen"]["alignment"] > summary["unseen"]["uniform"] + 0.03


def flwr_run(folder: Path, config: dict[str, Any], supernodes: int) -> str:
    """Run the app through Flower's own command line; return the run's true status."""
    ports = free_ports(2)
    environment = os.environ | {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    text = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    try:
        subprocess.run(
            [
                BIN / "flwr", "run", ROOT, "--stream", "--run-config", text,
                "--federation-config", f"num-supernodes={supernodes} client-resources-num-cpus=1",
            ],
            check=True, env=environment, capture_output=True, timeout=200,
        )  # fmt: skip
        listed = subprocess.run(
            [BIN / "flwr", "list", "--format", "json"],
            check=True, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        return str(json.loads(listed.stdout)["runs"][0]["status"])
    finally:  # the background SuperLink that `flwr run` started
        for process in psutil.process_iter():
            try:
                if process.environ().get("FLWR_HOME") == environment["FLWR_HOME"]:
                    process.kill()
            except psutil.Error:
                continue


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
