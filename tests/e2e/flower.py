"""Flower's command line with a home and a SuperLink of its own, and what a run leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment of a user who never ran Flower, for its ``flwr`` commands."""
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # the tests' environment is installed
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


def flwr(folder: Path, environment: Mapping[str, str], *words: str) -> str:
    """Run a ``flwr`` command in a folder to its good end; return what it printed."""
    for _ in range(3):  # Flower gives its SuperLink 15 s to start, too few on a busy machine
        result = subprocess.run(
            [BIN / "flwr", *words], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=500,
        )  # fmt: skip
        if "Failed to start local SuperLink" not in result.stdout + result.stderr:
            break
    else:
        pytest.skip("Flower's SuperLink does not start within Flower's 15 s on this machine")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def end_superlink(environment: Mapping[str, str]) -> None:
    """End the background SuperLink that ``flwr run`` leaves behind, and what it started."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == environment["FLWR_HOME"]:
                process.kill()
        except psutil.Error:
            continue


def only_run(output: Path) -> Path:
    (run,) = (path.parent for path in output.glob("*/run.json"))
    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
