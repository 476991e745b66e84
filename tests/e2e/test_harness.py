"""The harness itself: a unit that was killed or stopped is gone, with all that it started."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.processes import mark, started, until
from tests.e2e.units import Unit

__all__ = ["mark"]

# As nginx does: whoever dies before the parent is replaced at once.
REPLACING = "while true; do sleep 1000 & wait $!; done"
# The parent ends in order, and leaves a child behind.
FORGETFUL = "trap 'exit 0' TERM; (trap '' TERM; while true; do sleep 1000; done) & wait"


def test_nothing_is_started_in_place_of_what_is_killed(tmp_path: Path, mark: str) -> None:
    for _ in range(10):  # it is a race: killing children first loses it every few times
        unit = Unit(["bash", "-c", REPLACING], tmp_path / "log", os.environ)
        unit.spawn()
        assert until(lambda: len(started(mark)) == 2, 10)
        unit.kill()
        assert started(mark) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_unit_that_is_stopped(tmp_path: Path, mark: str, number: int) -> None:
    unit = Unit(["bash", "-c", FORGETFUL], tmp_path / "log", os.environ)
    unit.start()
    assert until(lambda: len(started(mark)) == 3, 10)
    unit.stop(number)
    assert started(mark) == []
    assert unit.starts == 1


def test_a_unit_that_was_killed_is_started_again(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.e2e.units.RESTART_SECONDS", 0.1)
    unit = Unit(["sleep", "1000"], tmp_path / "log", os.environ)
    unit.start()
    unit.kill()
    assert until(lambda: unit.starts == 2 and unit.running, 10)
    unit.stop()
    assert started(mark) == []
