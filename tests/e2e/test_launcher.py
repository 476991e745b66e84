"""The private SuperLink with a tiny real Flower app: how runs end, and what they leave."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pluralllm_fl.cli.simulate import _Simulation
from pluralllm_fl.config import RunConfig, toml
from pluralllm_fl.errors import FederationError
from pluralllm_fl.processes import launcher
from pluralllm_fl.processes.launcher import PrivateSuperLink, last_lines
from tests.e2e.flower import ROOT
from tests.e2e.processes import mark, started, until

__all__ = ["mark"]


PYPROJECT = """
[project]
name = "tiny"
version = "0.1.0"
license = { file = "LICENSE" }
dependencies = ["flwr[simulation]>=1.41,<1.42"]
[tool.flwr.app]
publisher = "tests"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"
[tool.flwr.app.config]
behaviour = ""
marker = ""
"""
SERVER = """
import json, os, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
import pluralllm_fl
app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    if config["behaviour"] == "crash":
        raise RuntimeError("broken on purpose")
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.05)
    replies = list(grid.send_and_receive([Message(RecordDict(), n, "query") for n in nodes]))
    found = {
        "replies": len(replies), "errors": sum(r.has_error() for r in replies),
        "home": os.environ["FLWR_HOME"], "threads": os.environ["OMP_NUM_THREADS"],
        "package": pluralllm_fl.__file__, "files": sorted(os.listdir(Path(__file__).parent)),
    }
    Path(config["marker"]).write_text(json.dumps(found))
    while config["behaviour"] == "wait":
        time.sleep(1)
"""
CLIENT = """
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)
"""
DRIVER = """
import sys
from pathlib import Path
from pluralllm_fl.processes.launcher import PrivateSuperLink
folder = Path(sys.argv[1])
with PrivateSuperLink(threads=1) as superlink:
    print(superlink._folder, flush=True)
    superlink.run(
        folder / "app", {"behaviour": "wait", "marker": str(folder / "marker")},
        supernodes=3, gpus=0.0, log=folder / "flower.log", tick=lambda: False,
    )
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    for name, content in {
        "pyproject.toml": PYPROJECT, "server_app.py": SERVER, "client_app.py": CLIENT,
        "LICENSE": "none", "data.jsonl": "{}",
    }.items():  # fmt: skip
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def foreign_superlink() -> Iterator[list[object]]:
    """Listen where the user's own local SuperLink would; yield what connects."""
    connections: list[object] = []
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", 39091))
        except OSError:
            pytest.skip("port 39091 is taken")
        server.listen()
        server.settimeout(0.2)
        done = threading.Event()

        def accept() -> None:
            while not done.is_set():
                try:
                    connections.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield connections
        done.set()
        thread.join()


def test_run_completes_alone_and_leaves_nothing(
    app: Path,
    tmp_path: Path,
    mark: str,
    foreign_superlink: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path / "other project"
    elsewhere.mkdir()
    (elsewhere / "client_app.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(elsewhere)
    marker, log = tmp_path / "marker", tmp_path / "flower.log"
    ticks = []
    with PrivateSuperLink(threads=1) as superlink:
        outcome = superlink.run(
            app, {"behaviour": "", "marker": str(marker)},
            supernodes=3, gpus=0.0, log=log, tick=lambda: bool(ticks.append(started(mark))),
        )  # fmt: skip
    assert (outcome.status, outcome.details) == ("completed", "")
    found = json.loads(marker.read_text())
    assert (found["replies"], found["errors"], found["threads"]) == (3, 0, "1")
    assert found["package"] == str(ROOT / "pluralllm_fl" / "__init__.py")
    assert "data.jsonl" not in found["files"]
    assert "Starting Flower Simulation" in log.read_text()
    assert any(len(processes) > 5 for processes in ticks)
    assert started(mark) == []
    assert not Path(found["home"]).exists()
    assert foreign_superlink == []


FOREIGN = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("ran", ray.get(ray.remote(lambda: 1).remote()))
"""


def listening(mark: str) -> dict[str, set[tuple[str, int]]]:
    """Return name -> (address, port) on which processes with the mark listen."""
    found: dict[str, set[tuple[str, int]]] = {}
    for entry in started(mark):
        number, name = entry.split(" ", 1)
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(int(number)).net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.setdefault(name, set()).add((one.laddr.ip, one.laddr.port))
    return found


def test_a_run_is_closed_to_foreign_processes_and_dies_with_its_parent(
    app: Path, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.is_dir()
    parent = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().strip())
        assert until((tmp_path / "marker").exists, 90)
        assert len(started(mark)) > 5
        listeners = listening(mark)
        [(_, port)] = listeners["gcs_server"]
        addresses = {address for places in listeners.values() for address, _ in places}
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listeners
        monkeypatch.delenv("PLURALLM_TEST_MARK")
        foreign = subprocess.run(
            [sys.executable, "-c", FOREIGN, f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=90,
            env={**os.environ, "HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        )  # fmt: skip
    finally:
        parent.kill()
        parent.communicate(timeout=30)
    assert until(lambda: not started(mark) and not folder.exists(), 15), started(mark)
    assert foreign.returncode != 0
    assert "ran" not in foreign.stdout
    assert "token" in foreign.stderr.lower(), foreign.stderr


def test_crashed_server_is_a_failed_run(app: Path, tmp_path: Path, mark: str) -> None:
    log = tmp_path / "flower.log"
    with PrivateSuperLink(threads=1) as superlink:
        outcome = superlink.run(
            app, {"behaviour": "crash", "marker": ""},
            supernodes=3, gpus=0.0, log=log, tick=lambda: False,
        )  # fmt: skip
    assert (outcome.status, outcome.details) == ("failed", "broken on purpose")
    assert "RuntimeError: broken on purpose" in log.read_text()
    assert started(mark) == []


def test_app_that_flower_refuses(app: Path, tmp_path: Path, mark: str) -> None:
    (app / "pyproject.toml").write_text(PYPROJECT.replace("publisher", "publishes"))
    with (
        pytest.raises(FederationError, match=r"did not start the run: [\s\S]*publisher"),
        PrivateSuperLink(threads=1) as superlink,
    ):
        superlink.run(
            app, {}, supernodes=3, gpus=0.0, log=tmp_path / "flower.log", tick=lambda: False
        )
    assert started(mark) == []


FINISHED = """
import json, time
from pathlib import Path
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    run = Path(context.run_config["output-dir"]) / context.run_config["run-name"]
    run.mkdir()
    event = {"event": "run_finished", "time": time.time(), "status": "completed", "error": None}
    (run / "metrics.jsonl").write_text(json.dumps(event) + "\\n")
    time.sleep(300)
"""


def test_a_completed_run_stays_so_if_the_watchdog_is_killed(
    app: Path, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a tracker the run is watched for longer than its results take.
    config = RunConfig.default(
        {"output-dir": str(tmp_path), "run-name": "run", "trackers": "tensorboard"}
    )
    keys = toml(config.to_run_config())
    (app / "pyproject.toml").write_text(PYPROJECT.replace('behaviour = ""\nmarker = ""\n', keys))
    (app / "server_app.py").write_text(FINISHED)
    # By its dictionary: the name of the module is that of the command in its package.
    monkeypatch.setitem(_Simulation._follow.__globals__, "app_directory", lambda: app)
    with PrivateSuperLink(threads=1) as superlink:

        def kill() -> None:
            until((tmp_path / "run" / "metrics.jsonl").exists, 90)
            time.sleep(1)
            superlink._watchdog.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        outcome = _Simulation(config, 0.0, verbose=False)._follow(superlink, 3)
        killer.join()
    assert outcome.status == "completed"
    assert until(lambda: not started(mark), 5), started(mark)


def test_taken_port_is_chosen_again(
    mark: str, foreign_superlink: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([39091, launcher._free_port()])
    monkeypatch.setattr(launcher, "_free_port", lambda: next(ports))
    with PrivateSuperLink(threads=1) as superlink:
        superlink._wait_until_ready()
        assert superlink._port != 39091
    assert started(mark) == []
    assert foreign_superlink == []


def test_missing_flower_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.shutil, "which", lambda *_, **__: None)
    with pytest.raises(FederationError, match="pip install"), PrivateSuperLink(threads=1):
        pass


def test_temporary_folder_leaves_room_for_socket_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert launcher._short_temporary_folder() == "/tmp"


def test_last_lines_are_plain(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n\x1b[91mERROR \x1b[0m:     Exit Code: 700\n\nlast\n")
    assert last_lines(log, 2) == "Exit Code: 700\nlast"
    assert last_lines(tmp_path / "absent") == ""
