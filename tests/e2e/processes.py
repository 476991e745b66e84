"""Finding what a test started, wherever it hangs in the process tree."""

import os
import time
import uuid
from collections.abc import Callable

import psutil
import pytest


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Mark everything that the test starts, so that left-overs are found wherever they hang."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("PLURALLM_TEST_MARK", value)
    return value


def started(mark: str) -> list[str]:
    """Return the running processes that carry the mark, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("PLURALLM_TEST_MARK") == mark
            if marked and process.pid != os.getpid() and process.status() != "zombie":
                found.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return found


def until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False
