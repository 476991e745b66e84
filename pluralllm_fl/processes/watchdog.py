"""Own one command and everything it starts; end all of it when the parent goes away.

Run as ``python -P watchdog.py FOLDER COMMAND…`` with a pipe as standard input. The pipe closes
when the parent closes it or dies, whatever the cause (SIGKILL too): then the whole tree is
terminated, FOLDER is removed and this process ends. If the command ends by itself, so does the
rest of its tree, but FOLDER stays for the parent to read. Stands alone: it must start in
milliseconds and never share a fate with what it guards.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

import psutil

GRACE_SECONDS = 0.5  # the files of a run are whole whenever its processes end
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def watch(folder: str, command: list[str]) -> None:
    """Run ``command`` until it ends or standard input closes, then clean up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.close(sys.stdin.fileno()))
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None:
        # Daemons that leave their session and parent become our children, not init's.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_me() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_me)
    seen: set[psutil.Process] = set()
    try:
        while child.poll() is None and not _closed(0.5):
            seen |= _tree()
            _reap(seen, child.pid)
    finally:
        by_itself = child.poll() is not None
        end(seen | _tree())
        if not by_itself:
            shutil.rmtree(folder, ignore_errors=True)


def end(processes: set[psutil.Process]) -> None:
    """Terminate processes and their children; kill those left after the grace period."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while (alive := _alive(processes | _tree())) and time.monotonic() < deadline:
        time.sleep(0.05)
    while alive:
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
        alive = _alive(alive | _tree())


def _tree() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _alive(processes: set[psutil.Process]) -> set[psutil.Process]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return {p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE}


def _reap(processes: set[psutil.Process], command: int) -> None:
    """Collect adopted children that ended; the command itself is waited for by its owner."""
    for process in processes:
        if process.pid != command:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def _closed(seconds: float) -> bool:
    try:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(ready) and not os.read(sys.stdin.fileno(), 1)
    except (OSError, ValueError):
        return True


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2:])
