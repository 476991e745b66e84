"""``deploy check`` against a real SuperLink over TLS with node authentication."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.deploy.layout import create
from tests.e2e.flower import BIN
from tests.e2e.processes import mark, started, until
from tests.ports import free_port

__all__ = ["mark"]

QUESTIONS = 24


class Federation:
    """The folder of a federation, its SuperLink on this machine, without a gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }
        groups = "Northland;Southland"
        create(folder / "fed", seen=groups, unseen="", servers="localhost", port=self.port, years=1)
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "localhost:{self.port}"\n'
            f'root-certificates = "{folder}/fed/ca/ca.crt"\n'
        )

    @contextlib.contextmanager
    def superlink(self) -> Iterator[None]:
        """Run the SuperLink, and whatever it starts, until the end of the block."""
        with self.running(
            "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port),
            "--ssl-ca-certfile", f"{self.folder}/fed/server/ca.crt",
            "--ssl-certfile", f"{self.folder}/fed/server/server.crt",
            "--ssl-keyfile", f"{self.folder}/fed/server/server.key",
            "--enable-supernode-auth",
        ) as process:  # fmt: skip
            assert until(lambda: process.poll() is not None or self._answers(), 60)
            assert process.poll() is None, self.log("flower-superlink")
            yield

    def _answers(self) -> bool:
        return "startup complete" in self.log("flower-superlink")

    @contextlib.contextmanager
    def running(self, program: str, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
        with (self.folder / f"{program}.log").open("w") as log:
            process = subprocess.Popen(
                [BIN / program, *arguments],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            yield process
        finally:
            children: list[psutil.Process] = []
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.kill()
            process.wait(timeout=15)

    def log(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text()

    def flwr(self, *arguments: str) -> str:
        result = subprocess.run(
            [BIN / "flwr", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def node(self, group: str) -> Path:
        """Return the folder of a node, with a data file in it."""
        folder = self.folder / "fed" / "nodes" / group.lower()
        rows = [
            {
                "group": group,
                "question": f"Do you like the number {i}?",
                "options": ["yes", "no"],
                "distribution": [0.25, 0.75],
            }
            for i in range(QUESTIONS)
        ]
        (folder / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return folder

    def check_script(self, node: Path) -> tuple[int, dict[str, dict[str, str]]]:
        """Run a node's check.sh; return its exit code and its findings by step."""
        result = subprocess.run(
            [node / "check.sh", "--json"],
            cwd="/", env=self.environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert result.stdout, result.stderr
        return result.returncode, by_step(result.stdout)

    def check(self, node: Path) -> tuple[int, dict[str, dict[str, str]]]:
        """Return the same without the script, and so without loading torch once more."""
        result = CliRunner().invoke(app, ["deploy", "check", str(node), "--json"])
        return result.exit_code, by_step(result.stdout)

    def status(self) -> str:
        """Return the state of the one registered node."""
        (node,) = json.loads(self.flwr("supernode", "list", "here", "--format", "json"))["nodes"]
        return str(node["status"])


def by_step(output: str) -> dict[str, dict[str, str]]:
    return {finding["step"]: finding for finding in json.loads(output)["findings"]}


@pytest.fixture
def federation(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))  # the command sets it if absent
    yield Federation(tmp_path)
    assert until(lambda: not started(mark), 20), started(mark)


def test_registered_unregistered_and_running_nodes(federation: Federation) -> None:
    node, stranger = federation.node("Northland"), federation.node("Southland")
    with federation.superlink():
        code, found = federation.check(node)
        assert (code, found["Registration"]["status"]) == (1, "wrong")
        assert "does not know this node's key (SHA256:" in found["Registration"]["message"]
        federation.flwr("supernode", "register", f"{node}/node.pub", "here")

        code, found = federation.check_script(node)
        assert list(found) == [
            *("Settings", "Programs", "Key", "Room", "Data file", "Group", "Embedding"),
            *("Name", "Port", "Certificate", "Clock", "Program", "Registration", "Exposure"),
        ]
        exposure = found.pop("Exposure")
        assert exposure["status"] == "warning"  # there is no gateway in front of this SuperLink
        assert {finding["status"] for finding in found.values()} == {"ok"}, found
        assert code == 0
        assert federation.status() == "registered"  # asked twice, activated never
        assert federation.check(stranger)[0] == 1

        with federation.running(
            "flower-supernode", "--superlink", f"localhost:{federation.port}",
            "--root-certificates", f"{node}/ca.crt", "--port", str(free_port()),
            "--auth-supernode-private-key", f"{node}/node.key",
        ):  # fmt: skip
            assert until(lambda: federation.status() == "online", 60)
            assert federation.check(node)[0] == 0
            assert federation.status() == "online"
        assert until(lambda: federation.status() == "offline", 30)
        assert federation.check(node)[0] == 0
        assert federation.status() == "offline"
    code, found = federation.check(node)
    assert (code, found["Port"]["status"]) == (1, "wrong")
    assert "refuses connections" in found["Port"]["message"]
