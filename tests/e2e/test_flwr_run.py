"""`flwr run .` in a fresh clone, as a Flower user types it: no option but to see the log."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.e2e.processes import mark, started
from tests.e2e.test_simulation import BIN, ROOT, free_ports, only_run, read

__all__ = ["mark"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what a clone holds: the tracked files, as they are now."""
    if not (ROOT / ".git").exists():
        pytest.skip("the source tree is not a git checkout, so nothing tells its files")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.fixture
def flower(tmp_path: Path, mark: str) -> Iterator[Mapping[str, str]]:
    """Yield the environment of a user who never ran anything; end what runs in it."""
    ports = free_ports(2)
    yield os.environ | {
        "HOME": str(tmp_path / "home"),
        "PLURALLM_CACHE": str(tmp_path / "cache"),
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # the tests' environment is installed
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    for entry in started(mark):  # the background SuperLink among them
        try:
            psutil.Process(int(entry.split()[0])).kill()
        except psutil.Error:
            continue


def flwr(clone: Path, environment: Mapping[str, str], *words: str) -> str:
    for _ in range(3):  # Flower gives its SuperLink 15 s to start, too few on a busy machine
        result = subprocess.run(
            [BIN / "flwr", *words], cwd=clone, env=environment, capture_output=True, text=True,
            timeout=500,
        )  # fmt: skip
        if "Failed to start local SuperLink" not in result.stdout + result.stderr:
            break
    else:
        pytest.skip("Flower's SuperLink does not start within Flower's 15 s on this machine")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_two_supernodes_learn_and_show_what_new_groups_get(
    clone: Path, flower: Mapping[str, str], tmp_path: Path
) -> None:
    log = flwr(clone, flower, "run", ".", "--stream")
    listed = json.loads(flwr(clone, flower, "list", "--format", "json"))
    assert listed["runs"][0]["status"] == "finished:completed", log
    run = only_run(tmp_path / "home" / "pluralllm-runs")
    assert read(run / "run.json")["status"] == "completed"
    seen = read(run / "summary.json")["seen"]
    assert len(seen["by_group"]) == 2
    assert seen["alignment"] > seen["uniform"] + 0.1
    found = re.search(r"6 groups that did not train.* alignment ([\d.]+) \(uniform ([\d.]+)", log)
    assert found, log
    assert float(found[1]) > float(found[2])
    assert f"Completed. Results: {run}" in log


def test_a_failure_says_so_last_and_in_the_run(
    clone: Path, flower: Mapping[str, str], tmp_path: Path
) -> None:
    log = flwr(clone, flower, "run", ".", "--stream", "--run-config", "synthetic-groups=3")
    assert log.count("The run failed: The simulation has 2 node(s) but the data set has 3") == 1
    assert "num-supernodes=3 client-resources-num-cpus=1" in log
    record = read(only_run(tmp_path / "home" / "pluralllm-runs") / "run.json")
    assert record["status"] == "failed"
    assert "num-supernodes=3" in record["error"]
