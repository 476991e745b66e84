"""Flower's SuperNode, ended for good when it fails, and without the processes that it forgets.

After an error of the SuperLink (a database locked for once is enough) Flower's SuperNode stops
working, but its local API server keeps the process alive: nothing starts it again. Here the
process ends with its work, so that systemd, Docker or a shell can.

When a run dies while nodes work for it, a SuperNode keeps a ClientApp process that waits for ever,
with 130 MB, and may send a late answer in place of the next one, and so stay one answer behind for
ever. Here the process ends, to be started again, when it drops what it did for a dead run, and a
ClientApp ends when a later message is worked on.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time

import psutil

# Private to Flower: what the command `flower-supernode` calls; as a child process it would hide its
# log from us. Delete this file when that command exits after an error of its SuperLink
# (flwrlabs/flower#8174 is about its start alone) and ends what it does for a run that is over.
from flwr.supernode.cli.flower_supernode import flower_supernode

SWEEP_SECONDS = 10.0
# Part of a line of Flower's log: nothing else tells. Delete when a SuperNode ends such work itself.
_DEAD_RUN = "is not in `RUNNING` status. Ignoring"


def main() -> None:
    """Run ``flower-supernode`` with this process's arguments."""
    threading.Thread(target=_sweep, daemon=True).start()
    logging.getLogger("flwr").addHandler(_FreshStart())
    code: int | str | None = 1
    try:
        flower_supernode()
        print("The SuperNode ended: the SuperLink refused or failed. Start it again.", flush=True)
    except SystemExit as end:
        code = end.code
    for process in _descendants():
        _kill(process)
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


class _FreshStart(logging.Handler):
    """Ends the SuperNode, as `systemctl stop` would, when it dropped what it did for a dead run."""

    def emit(self, record: logging.LogRecord) -> None:
        if _DEAD_RUN in record.getMessage():
            print("A run ended while this node worked for it: starting afresh.", flush=True)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()


def _sweep() -> None:
    """Kill every ClientApp that was overtaken: a SuperNode works on one message at a time."""
    overtaken: set[psutil.Process] = set()
    while True:
        time.sleep(SWEEP_SECONDS)
        apps = sorted(filter(_is_client_app, _descendants()), key=lambda app: app.create_time())
        # One that just ends may overlap with the next: only those found twice are stuck.
        for app in overtaken.intersection(apps[:-1]):
            _kill(app)
        overtaken = set(apps[:-1])


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _is_client_app(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("flwr-clientapp" in word for word in process.cmdline())
    return False


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


if __name__ == "__main__":
    main()
