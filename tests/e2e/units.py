"""Programs kept alive as by systemd, and ended with all that they started."""

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

RESTART_SECONDS = 5.0  # as in the units; sooner, nodes that are refused would keep a core busy


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
