"""simulation.py on an existing Ray cluster: several Ray nodes, the same bits, nothing left behind.

Where it is permitted, the second Ray node runs as on a machine of its own: it sees neither
this package nor the launcher's temporary files nor its embedding cache.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.flower import BIN, ROOT
from tests.e2e.processes import mark, started, until
from tests.integration.inprocess import in_this_process
from tests.ports import free_port

__all__ = ["mark"]

NODES = 2
SMALL = {
    "synthetic-groups": 4, "synthetic-questions": 40, "num-server-rounds": 2, "local-steps": 3,
    "question-features": 32, "width": 16, "feed-forward": 16, "context-questions": 10,
    "update-dtype": "bfloat16",
}  # fmt: skip
# What a program finds that was started with `ray job submit`.
RAY_JOB = {"runtime_env": {"env_vars": {"OF_THE_JOB": "yes"}}, "metadata": {"job_name": "test"}}
LOOK = """
import json, sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
found = {"alive": sum(node["Alive"] for node in ray.nodes())}
print(json.dumps(found | {"all": ray.cluster_resources(), "free": ray.available_resources()}))
"""


class Cluster:
    """Ray nodes of one CPU each, on this machine."""

    def __init__(self, folder: Path, hidden: Sequence[Path]) -> None:
        self.folder = folder
        self.hidden = hidden
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        port, client = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        here = ["--head", "--port", str(port), "--ray-client-server-port", str(client)]
        self._start([], [*here, "--include-dashboard", "false"])
        for _ in range(NODES - 1):
            self._start(_elsewhere(self.hidden), ["--address", self.address])
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def look(self) -> dict[str, Any]:
        """Return how many nodes live, and their resources: all, and those that are free."""
        answer = subprocess.run(
            [sys.executable, "-c", LOOK, self.address], capture_output=True, text=True, timeout=60,
            env={**os.environ, "RAY_ADDRESS": ""},
        )  # fmt: skip
        return dict(json.loads(answer.stdout)) if not answer.returncode else {"alive": 0}

    def _start(self, prefix: list[str], options: list[str]) -> None:
        number = len(self.started)
        command = [
            *prefix, str(BIN / "ray"), "start", *options, "--block", "--num-cpus", "1",
            "--object-store-memory", "80000000", "--temp-dir", str(self.folder / f"node{number}"),
        ]  # fmt: skip
        with (self.folder / f"node{number}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.started.append(process)
        if not number and not until(lambda: _listens(self.address) or process.poll(), 30):
            pytest.skip(f"Ray does not start here: {self.log()}")

    def log(self) -> str:
        """Return the end of every node's log."""
        logs = [path.read_text(errors="replace") for path in self.folder.glob("*.log")]
        return "\n".join(text[-500:] for text in logs)


@pytest.fixture
def cluster(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Ray cluster of two nodes; everything of it is stopped in the end."""
    # Ray's sockets allow no long path.
    with tempfile.TemporaryDirectory(prefix="plray", dir="/tmp") as folder:
        temporary, cache = Path(folder) / "t", tmp_path / "cache"
        temporary.mkdir()
        cache.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setenv("PLURALLM_CACHE", str(cache))
        with Cluster(Path(folder), [ROOT / "pluralllm_fl", temporary, cache]) as running:
            yield running
        assert until(lambda: not started(mark), 10), started(mark)


def temporary_folders() -> set[Path]:
    """Return the launcher's folders in the test's own temporary folder; other tests run beside."""
    return set(Path(os.environ["TMPDIR"]).glob("plfl-*"))


def test_same_bits_on_several_ray_nodes_and_nothing_left(
    cluster: Cluster, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not until(lambda: cluster.look()["alive"] == NODES, 30):
        pytest.skip(f"Ray cannot start {NODES} nodes here: {cluster.log()}")
    own, folders = set(started(mark)), temporary_folders()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(RAY_JOB))
    with at_work(mark) as workers:
        shared = simulate(tmp_path / "shared", cluster.address)
    here = in_this_process(shared, tmp_path)
    assert len(workers) > 1
    for environment in workers.values():
        assert (environment["OMP_NUM_THREADS"], environment["OF_THE_JOB"]) == ("1", "yes")
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (here, shared)]
    assert weights[0] == weights[1]
    assert scores(here) == scores(shared)
    assert until(lambda: own >= set(started(mark)), 15), set(started(mark)) - own
    assert temporary_folders() <= folders
    found = cluster.look()
    assert found["alive"] == NODES
    for resource in ("CPU", "object_store_memory"):
        assert found["free"][resource] == found["all"][resource]


def simulate(output: Path, ray_address: str) -> Path:
    """Run simulation.py to its end; return the run directory."""
    output.mkdir()
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    command = [sys.executable, str(ROOT / "simulation.py"), "--output-dir", str(output)]
    result = subprocess.run(
        [*command, "--set=run-name=run", *settings], capture_output=True, text=True, cwd=output,
        timeout=200, env={**os.environ, "RAY_ADDRESS": ray_address, "COLUMNS": "200"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return output / "run"


def scores(run: Path) -> list[Any]:
    summary = json.loads((run / "summary.json").read_text())
    return [summary["seen"], summary["unseen"]]


@contextmanager
def at_work(mark: str) -> Iterator[dict[int, dict[str, str]]]:
    """Collect the Ray nodes that work for the run: process id of the raylet -> worker's variables.

    Ray names a worker's process after the method that it is in.
    """
    found: dict[int, dict[str, str]] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.3):
            for process in psutil.process_iter():
                try:
                    working = process.cmdline()[:1] == ["ray::ClientAppActor.run"]
                    variables = process.environ() if working else {}
                    if variables.get("PLURALLM_TEST_MARK") == mark:
                        found[process.ppid()] = variables
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _elsewhere(hidden: Sequence[Path]) -> list[str]:
    """Return the words that start a program where these folders are empty; none if forbidden."""
    mounts = " && ".join(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hidden)
    words = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if shutil.which("unshare") is None:
        return []
    permitted = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if permitted else []


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return not probe.connect_ex((host, int(port)))
