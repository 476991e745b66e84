"""A private SuperLink for one simulated run, and ``flwr run`` on it.

Only Flower's public commands are used. Everything they write lies in one temporary folder and
everything they start belongs to one watchdog, so that nothing outlives the run and no other
SuperLink or Ray cluster on the machine is touched. A cluster that the user names in
``RAY_ADDRESS`` is used and left as it was; its workers get our code with the job.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import psutil

from pluralllm_fl.config import Value
from pluralllm_fl.devices import available_cpus
from pluralllm_fl.errors import FederationError
from pluralllm_fl.processes import watchdog
from pluralllm_fl.processes.flower import (
    FlowerConnection,
    flower_scripts,
    stage_app,
    uncoloured,
)
from pluralllm_fl.processes.ray_cluster import existing_cluster, ray_environment, reach_cluster

START_SECONDS = 60.0
CLOSE_SECONDS = 30.0
TICK_SECONDS = 0.2
_CONNECTION = "private"


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended, in Flower's words."""

    status: Literal["completed", "failed", "stopped"]
    details: str


class PrivateSuperLink:
    """A SuperLink of our own; a context manager that leaves no process and no file behind.

    Parameters
    ----------
    threads : int
        Threads that numerical libraries may use in each process.

    Raises
    ------
    FederationError
        If Flower's commands are not installed or do not start, or RAY_ADDRESS does not answer.
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> Self:
        if existing_cluster():
            reach_cluster()
        scripts = flower_scripts()
        self._flwr = str(Path(scripts) / "flwr")
        self._folder = Path(tempfile.mkdtemp(prefix="plfl-", dir=_short_temporary_folder()))
        self._environment = _environment(scripts, self._folder, self._threads)
        self._output = self._folder / "superlink.log"
        # Also everyone's working directory: Ray's actors import from theirs first of all, and
        # the user's may hold another project's client_app.py.
        self._app = self._folder / "app"
        self._app.mkdir()
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not cut the clean-up short: it is bounded anyway.
        with ignored_interrupts():
            self._watchdog.stdin.close()  # type: ignore[union-attr]
            try:
                self._watchdog.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                tree = psutil.Process(self._watchdog.pid).children(recursive=True)
                self._watchdog.kill()
                watchdog.end(set(tree))
            if self._watchdog.returncode:  # killed, it guarded nobody any more
                watchdog.end(_left_behind(self._folder))
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self,
        app: Path,
        run_config: Mapping[str, Value],
        *,
        supernodes: int,
        gpus: float,
        log: Path,
        tick: Callable[[], bool],
    ) -> RunEnd:
        """Run a Flower app to its end.

        Parameters
        ----------
        app : Path
            Folder with pyproject.toml, server_app.py and client_app.py.
        run_config : mapping of str to bool, float, int or str
            Every run-config value.
        supernodes : int
            Number of simulated nodes.
        gpus : float
            Share of a GPU that each node may use.
        log : Path
            Receives the run's log as it grows.
        tick : callable
            Called a few times a second while the run goes on. True says that all of its results
            are there: then nobody waits for Flower and Ray to put their processes away.

        Raises
        ------
        FederationError
            If the run cannot be started or its SuperLink ends early.
        """
        self._wait_until_ready()
        staged, options = stage_app(app, run_config, self._folder)
        command = [
            self._flwr, "run", staged, _CONNECTION, "--stream", *options,
            "--federation-config", self._resources(supernodes, gpus),
        ]  # fmt: skip
        with log.open("ab") as output:
            process = self._popen(command, output)
            try:
                return self._follow(process, log, tick)
            finally:
                process.kill()
                process.wait()

    def _follow(
        self, process: "subprocess.Popen[bytes]", log: Path, tick: Callable[[], bool]
    ) -> RunEnd:
        """Wait for the end of the log, then ask how the run ended: `flwr run` exits 0 anyway."""
        while True:
            while process.poll() is None:
                if self._watchdog.poll() is not None:
                    raise self._ended()
                if tick() and not existing_cluster():  # a cluster of others is left in order
                    return RunEnd("completed", "")
                time.sleep(TICK_SECONDS)
            outcome = self._outcome(log)
            tick()
            if outcome is not None:
                return outcome
            time.sleep(1.0)

    def _outcome(self, log: Path) -> RunEnd | None:
        try:
            runs = FlowerConnection(_CONNECTION, environment=self._environment).runs()
        except FederationError:
            if self._watchdog.poll() is not None:
                raise self._ended() from None
            raise
        if not runs:
            raise FederationError(
                f"Flower did not start the run: {last_lines(log) or 'no reason given'}"
            )
        run = runs[0]
        phase, _, status = run["status"].partition(":")
        if phase != "finished":
            return None
        # Flower's words, of which the user needs others. Delete when it gives a cause as a code.
        details = run["status-details"].removeprefix("Simulation failed with exception: ")
        if details.startswith("No heartbeat"):
            details = "The simulation's process was killed; often the machine is out of memory."
        return RunEnd(status, details)

    def _start(self) -> None:
        self._port = _free_port()
        (self._folder / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
            f'address = "127.0.0.1:{self._port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        command = [
            sys.executable, "-P", watchdog.__file__, str(self._folder),
            str(Path(self._flwr).with_name("flower-superlink")),
            "--insecure", "--simulation", "--isolation", "subprocess",
            "--host", "127.0.0.1", "--port", str(self._port),
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        with self._output.open("ab") as output:
            self._watchdog = self._popen(command, output, subprocess.PIPE)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        attempts = 3
        while not self._listens():
            if self._watchdog.poll() is not None:
                attempts -= 1
                # Someone may have taken the port between our choice and the start.
                if not attempts or "address already in use" not in last_lines(self._output, 20):
                    raise self._ended()
                self._start()
            if time.monotonic() > deadline:
                raise FederationError(
                    f"Flower's SuperLink did not start within {START_SECONDS:.0f} s: "
                    f"{last_lines(self._output)}"
                )
            time.sleep(0.1)

    def _listens(self) -> bool:
        """Tell whether a process of ours (not just any) listens on the port."""
        with contextlib.suppress(psutil.Error):
            return any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == self._port
                for process in psutil.Process(self._watchdog.pid).children()
                for connection in process.net_connections("tcp")
            )
        return False

    def _ended(self) -> FederationError:
        return FederationError(
            f"Flower's SuperLink ended unexpectedly: {last_lines(self._output) or 'no message'}"
        )

    def _resources(self, supernodes: int, gpus: float) -> str:
        if existing_cluster():  # it has cores of its own, of which this machine knows nothing
            cores = f"client-resources-num-cpus={self._threads}"
        else:
            cpus = available_cpus()
            cores = (
                f"init-args-num-cpus={cpus} client-resources-num-cpus={min(self._threads, cpus)}"
            )
        return f"num-supernodes={supernodes} {cores} client-resources-num-gpus={gpus:.6f}"

    def _popen(
        self, command: list[str], output: IO[bytes], stdin: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[bytes]":
        # A session of its own: the terminal's Ctrl-C reaches only us, and we end the rest.
        return subprocess.Popen(
            command, env=self._environment, cwd=self._app, start_new_session=True,
            stdin=stdin, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def last_lines(log: Path, count: int = 3) -> str:
    """Return the last lines with a message, without colours and prefixes; '' if none."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    text = uncoloured(text)
    lines = [re.sub(r"^(ERROR|WARNING|INFO|DEBUG)\s*:\s*", "", x).strip() for x in text.split("\n")]
    return "\n".join([line for line in lines if line][-count:])


def _left_behind(folder: Path) -> set[psutil.Process]:
    """Return all processes of one private SuperLink, wherever they hang in the process tree."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(folder):
                found.add(process)
    return found


@contextlib.contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Let no signal cut short what takes a moment and must be done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in interrupts}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _short_temporary_folder() -> str:
    """Return a temporary folder whose path leaves room for Ray's sockets (107 bytes in all)."""
    default = tempfile.gettempdir()
    short = len(os.fsencode(default)) <= 24 or not os.access("/tmp", os.W_OK)
    return default if short else "/tmp"


def _environment(scripts: str, folder: Path, threads: int) -> dict[str, str]:
    inherited = os.environ
    package = str(Path(__file__).resolve().parents[2])
    # Flower's processes run in a folder of their own: relative entries would point elsewhere.
    searched = filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))
    modules = [package, *(str(Path(entry).absolute()) for entry in searched)]
    local = "127.0.0.1,localhost"
    numerics = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {
        **inherited,
        "PATH": os.pathsep.join([scripts, inherited.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(modules),
        "FLWR_HOME": str(folder),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        # By default a task waits up to 1 s (flwrlabs/flower#8041 made this a variable, documented
        # for Helm alone). Delete when tasks are handed out without polling.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        **ray_environment(folder, numerics),
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": ",".join(filter(None, [inherited.get("NO_PROXY", ""), local])),
        "no_proxy": ",".join(filter(None, [inherited.get("no_proxy", ""), local])),
        **numerics,
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
