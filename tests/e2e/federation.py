"""A deployed federation on one machine: a folder that `pluralllm deploy init` wrote, its programs.

`Network` gives the server and each node a network of its own, `Unit` stands in for systemd.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.runs.artefacts import is_claimed
from tests.e2e.network import Network
from tests.e2e.units import Unit, kill
from tests.ports import free_port


class Deployment:
    """A federation that `deploy init` wrote, and its programs."""

    def __init__(
        self, folder: Path, seen: Sequence[str], unseen: Sequence[str] = (), *, mark: str = ""
    ) -> None:
        self.folder = folder / "fed"
        self.mark = mark
        self.seen, self.unseen = list(seen), list(unseen)
        self.network = Network(["server", *self.seen, *self.unseen])
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.units: dict[str, Unit] = {}
        self.port = 0
        scripts = str(Path(sys.executable).parent)
        self.env = {
            **os.environ,
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "PLURALLM_TEST_MARK": mark,
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }

    def __enter__(self) -> "Deployment":
        self.network.__enter__()
        self.port = 8443 if self.network.separate else free_port(1)
        answer = CliRunner().invoke(app, [
            "deploy", "init", str(self.folder), "--groups", ";".join(self.seen),
            "--unseen", ";".join(self.unseen), "--server", self.network.address("server"),
            "--port", str(self.port),
        ])  # fmt: skip
        assert answer.exit_code == 0, answer.output
        for settings in self.folder.glob("*/**/*.env"):
            settings.write_text(re.sub("VENV=.*", f"VENV={sys.prefix}", settings.read_text()))
        return self

    def __exit__(self, *_: object) -> None:
        for unit in reversed(self.units.values()):
            unit.stop(signal.SIGKILL)
        kill(self.members())  # what a killed parent left behind
        self.network.__exit__()

    def members(self) -> list[psutil.Process]:
        """Return all that runs of this federation, wherever it hangs in the process tree."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # nginx writes its title over its environment, but works in the server's folder.
                marked = self.mark and process.environ().get("PLURALLM_TEST_MARK") == self.mark
                inside = Path(process.cwd()).is_relative_to(self.folder)
                if process.pid != os.getpid() and (marked or inside):
                    found.append(process)
        return found

    def node(self, group: str) -> Path:
        """Return a node's folder."""
        return self.folder / "nodes" / self.slug(group)

    def slug(self, group: str) -> str:
        """Return the folder's name of a group."""
        return re.sub("[^a-z0-9]+", "-", group.lower()).strip("-")

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "server" / "state" / "runs" / "run-1"

    def configure(self, **values: bool | float | int | str) -> None:
        """Set keys of federation.toml."""
        path = self.folder / "server" / "federation.toml"
        text = path.read_text()
        for name, value in values.items():
            key = name.replace("_", "-")
            text = re.sub(rf"(?m)^{key} = .*\n", "", text) + f"{key} = {json.dumps(value)}\n"
        path.write_text(text)

    def start_server(self) -> None:
        """Start SuperLink and gateway, and let the nodes' keys in."""
        for name in ("superlink", "gateway"):
            self.unit(name, "server", self.folder / "server" / f"{name}.sh").start()
        self.register()

    def register(self) -> None:
        """Run register.sh as soon as the SuperLink answers."""
        for _ in range(30):
            done = self.call("server", self.folder / "server" / "register.sh")
            if done.returncode == 0:
                return
            time.sleep(1)
        raise AssertionError(f"register.sh: {done.stdout}{done.stderr}")

    def start_node(self, group: str) -> Unit:
        """Start a node."""
        unit = self.unit(group, group, self.node(group) / "supernode.sh", "--once")
        unit.start()
        return unit

    def start_run(self) -> Unit:
        """Start run.sh."""
        unit = self.unit("run", "server", self.folder / "server" / "run.sh")
        unit.start()
        return unit

    def unit(self, name: str, machine: str, *command: str | Path) -> Unit:
        """Define a program on a machine."""
        log = self.logs / f"{self.slug(name)}.log"
        self.units[name] = Unit([*self.network.inside(machine), *command], log, self.env)
        return self.units[name]

    def call(self, machine: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine to its end."""
        words = [*self.network.inside(machine), *(str(word) for word in command)]
        return subprocess.run(
            words, capture_output=True, text=True, timeout=120, env=self.env, cwd="/"
        )

    def listens(self) -> bool:
        """Whether somebody answers at the port that the nodes connect to."""
        probe = f": </dev/tcp/{self.network.address('server')}/{self.port}"
        return not self.call("server", "bash", "-c", probe).returncode

    def server_app(self) -> psutil.Process | None:
        """Return the process that runs the ServerApp."""
        superlink = self.units["superlink"].process
        assert superlink is not None
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(superlink.pid).children(recursive=True):
                if any("flwr-serverapp" in word for word in process.cmdline()):
                    return process
        return None

    # -- what the run says

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the events so far, all or of one kind."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.run / "metrics.jsonl").read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if not kind or event["event"] == kind:
                        found.append(event)
        return found

    @property
    def round(self) -> int:
        """The last completed round."""
        return max((e["round"] for e in self.events("checkpoint")), default=0)

    @property
    def status(self) -> str:
        """The run's status in run.json."""
        path = self.run / "run.json"
        return str(json.loads(path.read_text())["status"]) if path.is_file() else "absent"

    @property
    def alive(self) -> bool:
        """Whether a ServerApp runs the run."""
        return is_claimed(self.run)

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait until a condition holds and return what it gave; else fail with the logs."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:g} s for: {what}\n{self.story()}")
            time.sleep(0.25)
        return found

    def story(self) -> str:
        """Return the end of every log."""
        logs = {name: unit.text().splitlines()[-15:] for name, unit in self.units.items()}
        parts = ["\n".join([f"-- {name}", *lines]) for name, lines in logs.items()]
        parts.append("-- events\n" + "\n".join(str(e)[:200] for e in self.events()[-12:]))
        return "\n".join(parts)


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a data file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
