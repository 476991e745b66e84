"""Signals that end a command: each is Ctrl-C, and several at once are one."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator

ONE_SIGNAL_SECONDS = 1.0


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C, so that the run is cleaned up.

    Several at once are one, as `timeout` sends them: the second would cut the clean-up short.
    """
    last = -math.inf

    def interrupt(*_: object) -> None:
        nonlocal last
        since, last = time.monotonic() - last, time.monotonic()
        if since > ONE_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    # What is ignored stays ignored, as `nohup` asks for.
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
