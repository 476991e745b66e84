"""What ends a command from outside: signals, a reader that leaves, a system that cannot run it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pluralllm_fl.cli.console import guarded
from tests.unit.test_cli import ROOT, _wide_terminal, invoke

__all__ = ["_wide_terminal"]


def test_interrupt_exits_130() -> None:
    interrupted = typer.Typer()

    @interrupted.command()
    @guarded
    def stop() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(interrupted, [])
    assert result.exit_code == 130
    assert "Interrupted" in result.output


TWICE = """
import signal, sys, time
from pluralllm_fl.cli.interrupts import one_interrupt
with one_interrupt():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("cleaned up", flush=True)
"""


def test_several_signals_at_once_do_not_cut_the_clean_up_short() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TWICE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.1)
        assert process.communicate(timeout=30)[0] == "cleaned up\n"


def test_a_reader_that_leaves_is_told_of(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # as `head` does when it has enough
    program = "from pluralllm_fl.cli import main; main()"
    file = tmp_path / "a.jsonl"
    row = {"group": "A", "question": "q", "options": ["a", "b"], "distribution": [0.5, 0.5]}
    file.write_text(json.dumps(row))
    found = subprocess.run(
        [sys.executable, "-c", program, "data", "check", str(file)],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert found.returncode == 1
    assert found.stderr == "Stopped: nobody reads the output any more (as after `| head`).\n"


@pytest.mark.parametrize(
    "command",
    [
        ["simulate"], ["resume", "run"], ["deploy", "run", "fed/server"],
        ["deploy", "init", "fed", "--groups", "A", "--server", "localhost"],
        ["deploy", "add", "fed", "--groups", "B"], ["deploy", "check", "."],
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_windows_is_told_at_once(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(signal, "SIGHUP")  # which Windows lacks
    told = invoke(*command)
    assert told.exit_code == 2
    assert "need Linux or macOS. On Windows use WSL 2" in told.output
    assert not any(tmp_path.iterdir())
