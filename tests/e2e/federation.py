"""A deployed federation on one machine: every program in a network of its own, kept alive.

`Network` gives the server and each node a network namespace with an address; where that is not
permitted all share the loopback. `Unit` stands in for systemd: it starts a script and starts it
again when it ends. `Deployment` is a folder that `pluralllm deploy init` wrote, with its units.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.runs.artefacts import is_claimed

RESTART_SECONDS = 5.0  # as in the units; sooner, nodes that are refused would keep a core busy


def free_port() -> int:
    """Return a port whose successor is free too (the SuperLink takes it)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return port


class Network:
    """One namespace a machine, each with a cable to one router."""

    def __init__(self, machines: Sequence[str]) -> None:
        self.machines = list(machines)
        self.tag = f"pl{os.getpid() % 100_000}"
        self.separate = False

    def __enter__(self) -> "Network":
        self.separate = self._permitted()
        if self.separate:
            try:
                self._build()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.separate:
            for name in [*self.machines, "router"]:
                subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True)

    def address(self, machine: str) -> str:
        """Return a machine's address."""
        if not self.separate:
            return "127.0.0.1"
        return f"10.213.{self.machines.index(machine)}.2"

    def inside(self, machine: str) -> list[str]:
        """Return the words that run a command on a machine."""
        return ["ip", "netns", "exec", self._space(machine)] if self.separate else []

    def cut(self, machine: str) -> None:
        """Pull a machine's plug."""
        self._ip("router", "link", "set", f"p{self.machines.index(machine)}", "down")

    def mend(self, machine: str) -> None:
        """Plug a machine in again."""
        self._ip("router", "link", "set", f"p{self.machines.index(machine)}", "up")

    def _permitted(self) -> bool:
        if shutil.which("ip") is None:
            return False
        probe = f"{self.tag}probe"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
        words = [
            "ip",
            "-n",
            probe,
            "link",
            "add",
            "probe0",
            "type",
            "veth",
            "peer",
            "name",
            "probe1",
        ]
        usable = made and not subprocess.run(words, capture_output=True).returncode
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
        return usable

    def _build(self) -> None:
        for name in ["router", *self.machines]:
            subprocess.run(["ip", "netns", "add", self._space(name)], check=True)
            self._ip(name, "link", "set", "lo", "up")
        forward = ["sysctl", "-qw", "net.ipv4.ip_forward=1"]
        subprocess.run(["ip", "netns", "exec", self._space("router"), *forward], check=True)
        for number, name in enumerate(self.machines):
            plug, router = f"p{number}", f"10.213.{number}.1"
            self._ip("router", "link", "add", plug, "type", "veth", "peer", "name", "eth0",
                     "netns", self._space(name))  # fmt: skip
            self._ip("router", "address", "add", f"{router}/24", "dev", plug)
            self._ip("router", "link", "set", plug, "up")
            self._ip(name, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            self._ip(name, "link", "set", "eth0", "up")
            self._ip(name, "route", "add", "default", "via", router)

    def _space(self, name: str) -> str:
        return f"{self.tag}{'router' if name == 'router' else self.machines.index(name)}"

    def _ip(self, machine: str, *words: str) -> None:
        command = ["ip", "-n", self._space(machine), *words]
        subprocess.run(command, check=True, capture_output=True)


class Unit:
    """A program that is started again when it ends, as by systemd's Restart=always."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        self.env = dict(env)
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Start, and keep alive until stopped."""
        self._stopping.clear()
        self.spawn()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def kill(self) -> None:
        """SIGKILL the program and what belongs to it; it is started again after a while."""
        end(self.process)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the program and what belongs to it for good; return when all of it is gone."""
        self._stopping.set()
        if self._keeper is not None:  # first, lest it start the program once more
            self._keeper.join()
        members = family(self.process)
        if self.process is not None and number != signal.SIGKILL:
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        end(self.process)
        kill(members)  # what outlived a parent that ended in order

    @property
    def running(self) -> bool:
        """Whether the program runs."""
        return self.code is None

    @property
    def code(self) -> int | None:
        """The exit status of the last start, if it ended."""
        return None if self.process is None else self.process.poll()

    def text(self) -> str:
        """Return all that the program wrote."""
        text = self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def spawn(self) -> None:
        """Start once."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env,
                cwd="/",
            )  # fmt: skip

    def _keep(self) -> None:
        while not self._stopping.wait(0.2):
            if self.running or self._stopping.wait(RESTART_SECONDS):
                continue
            self.spawn()


def family(process: "subprocess.Popen[bytes] | None") -> list[psutil.Process]:
    """Return a process, if it runs, and all below it."""
    if process is None or process.poll() is not None:
        return []
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    return []


def end(process: "subprocess.Popen[bytes] | None") -> None:
    """SIGKILL a process and all below it at one blow, as systemd does with a control group.

    They are frozen first, parents before children: nginx, for one, starts a worker in place of
    one that it sees die, and that one would outlive it, keep the port, and go on serving with
    the certificate of old.
    """
    if process is None or process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        kill(_frozen(psutil.Process(process.pid)))
    process.wait(10)


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL processes and wait until they are gone, zombies aside."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(lives, processes)):
        time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits for its parent's look does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _frozen(process: psutil.Process) -> list[psutil.Process]:
    found = [process]
    with contextlib.suppress(psutil.Error):
        process.suspend()
        for child in process.children():
            found += _frozen(child)
    return found


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
        self.port = 8443 if self.network.separate else free_port()
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
