"""`flwr run .` in a fresh clone, as a Flower user types it: no option but to see the log."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.flower import ROOT, end_superlink, flower_environment, flwr, only_run, read

pytestmark = pytest.mark.timeout(600)


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
    # Fewer rounds than by default, which would take a minute more.
    project = tmp_path / "clone" / "pyproject.toml"
    short = project.read_text().replace("num-server-rounds = 16", "num-server-rounds = 6")
    project.write_text(short)
    return tmp_path / "clone"


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the environment of a user who never ran anything; end what runs in it."""
    environment = flower_environment(tmp_path / "flower")
    yield environment | {
        "HOME": str(tmp_path / "home"),
        "PLURALLM_CACHE": str(tmp_path / "cache"),
    }
    end_superlink(environment)


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
    found = re.search(r"5 groups that did not train.* alignment ([\d.]+) \(uniform ([\d.]+)", log)
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
