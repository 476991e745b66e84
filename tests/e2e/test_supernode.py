"""A SuperNode whose SuperLink fails ends, so that it can be started again."""

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.e2e.processes import mark, started, until  # noqa: F401 - a fixture
from tests.ports import free_port


class Failing(BaseHTTPRequestHandler):
    """Every answer is an internal error, as when Flower's database is locked."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


def test_supernode_ends_when_the_superlink_fails(tmp_path: Path, mark: str) -> None:  # noqa: F811
    port, runtime = free_port(1), free_port(1)
    scripts = Path(sys.executable).parent
    env = os.environ | {
        # Flower looks for its other programs there, and the environment may not be activated.
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    log = tmp_path / "node.log"
    with (tmp_path / "link.log").open("wb") as output, log.open("wb") as said:
        link = subprocess.Popen(
            [scripts / "flower-superlink", "--insecure", "--host", "127.0.0.1",
             "--port", str(port)],
            env=env, stdout=output, stderr=output,
        )  # fmt: skip
        node = subprocess.Popen(
            # By the name that folders of earlier versions know; it runs what the new one does.
            [sys.executable, "-m", "pluralllm_fl.federation.supernode", "--insecure",
             "--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(runtime)],
            env=env, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            assert until(lambda: "SuperNode ID" in log.read_text(), 60)
            link.send_signal(signal.SIGKILL)
            link.wait(10)
            server = HTTPServer(("127.0.0.1", port), Failing)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            assert until(lambda: node.poll() is not None, 60), log.read_text()
            server.shutdown()
            server.server_close()
        finally:
            link.kill()
            node.kill()
    assert node.returncode == 1
    assert "The SuperNode ended" in log.read_text()
    assert until(lambda: not started(mark), 20), started(mark)
