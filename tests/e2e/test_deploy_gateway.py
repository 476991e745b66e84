"""The scripts of a folder that deploy init wrote: SuperLink, gateway and one node, for real."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from tests.e2e.processes import started, until
from tests.ports import free_port

pytestmark = [
    pytest.mark.skipif(
        shutil.which("nginx", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin") is None,
        reason="nginx is not installed",
    ),
]


@dataclass
class Federation:
    folder: Path
    port: int

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def node(self) -> Path:
        return self.folder / "nodes" / "a-b"

    def run(self, script: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script], cwd="/", capture_output=True, text=True, timeout=60)

    @contextlib.contextmanager
    def running(self, script: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        with (
            (self.folder / f"{script.stem}.log").open("wb") as log,
            subprocess.Popen([script, *arguments], cwd="/", stdout=log, stderr=log) as process,
        ):
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(15)
                finally:
                    process.kill()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", errors="replace")

    def status(self, method: str, path: str, port: int | None = None) -> int:
        trust = ssl.create_default_context(cafile=self.server / "ca.crt")
        trust.verify_flags |= ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPSConnection(
            "localhost", port or self.port, context=trust, timeout=10
        )
        with contextlib.closing(connection):
            connection.request(method, path, headers={"content-type": "application/protobuf"})
            return connection.getresponse().status

    def nodes(self) -> list[str]:
        """What Flower says of each registered node."""
        answer = subprocess.run(
            ["flwr", "supernode", "list", "federation", "--format", "json"],
            env=os.environ | {"FLWR_HOME": str(self.server / "flwr")},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return [node["status"] for node in json.loads(answer.stdout)["nodes"]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    mark, port = uuid.uuid4().hex, free_port(2)
    found = Federation(tmp_path_factory.mktemp("deploy") / "my federation", port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLURALLM_TEST_MARK", mark)
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        patch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        arguments = ["deploy", "init", str(found.folder), "--groups", 'A "b"', "--server"]
        result = CliRunner().invoke(app, [*arguments, "localhost", "--port", str(port)])
        assert result.exit_code == 0, result.output
        (found.node / "answers.jsonl").write_text("")
        with (found.node / "node.env").open("a") as file:
            file.write(f"RUNTIME_PORT={port + 2}\n")
        refused = found.run(found.server / "register.sh")
        assert refused.returncode == 1
        assert "a-b: not registered. Does superlink.sh run?" in refused.stderr
        with (
            found.running(found.server / "superlink.sh"),
            found.running(found.server / "gateway.sh"),
        ):
            ready = until(lambda: answers(port) and answers(port + 1), 40)
            assert ready, found.log("superlink") + found.log("gateway")
            yield found
    assert until(lambda: not started(mark), 20), started(mark)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/list-nodes"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/get-nodes"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/fleet/../control/list-nodes"),
        ("POST", "/v1/fleet/..%2fcontrol/list-nodes"),
        ("POST", "/v1/fleet/%2e%2e/control/list-nodes"),
        ("POST", "/v1/fleet/activate-node/../../control/list-nodes"),
        ("GET", "/"),
    ],
)
def test_the_gateway_hides_all_but_the_fleet_api(
    federation: Federation, method: str, path: str
) -> None:
    assert federation.status(method, path) == 404


def test_the_fleet_api_is_reached_and_the_rest_would_be(federation: Federation) -> None:
    assert federation.status("POST", "/v1/fleet/activate-node") == 401
    assert federation.status("GET", "/docs", federation.port + 1) == 200
    assert federation.status("POST", "/v1/control/list-nodes", federation.port + 1) == 200


def test_plain_text_is_refused(federation: Federation) -> None:
    connection = http.client.HTTPConnection("localhost", federation.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/fleet/activate-node")
        assert connection.getresponse().status == 400


def test_a_node_enters_after_its_registration(federation: Federation) -> None:
    with federation.running(federation.node / "supernode.sh", "--once") as node:
        assert node.wait(30) != 0
    assert federation.nodes() == []

    first, second = (federation.run(federation.server / "register.sh") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "a-b: registered, its SuperNode ID is" in first.stdout
    assert "a-b: registered before" in second.stdout
    registered = (federation.server / "state" / "registered.txt").read_text().split()
    assert registered == [first.stdout.split()[-1], "a-b"]

    with federation.running(federation.node / "supernode.sh") as node:
        entered = until(lambda: "SuperNode ID" in federation.log("supernode"), 30)
        assert entered, federation.log("supernode")
        assert federation.nodes() == ["online"]
        node.send_signal(signal.SIGTERM)
        node.wait(15)
    assert federation.nodes() == ["offline"]


def test_only_the_owner_reads_what_was_written(federation: Federation) -> None:
    for state in (federation.server / "state", federation.node / "state"):
        for path in state.rglob("*"):
            assert path.lstat().st_mode & 0o077 == 0, path
