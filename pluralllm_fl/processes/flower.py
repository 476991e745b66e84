"""Flower's command line: start a run of an app, and ask what became of it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm_fl.config import Value, toml
from pluralllm_fl.errors import FederationError

ACTIVE = ("pending", "starting", "running")


@dataclass(frozen=True, slots=True)
class FlowerConnection:
    """A SuperLink as Flower's command line knows it.

    Parameters
    ----------
    name : str
        Name of the connection in Flower's config.toml; empty: its default.
    home : Path or None
        Folder of that file (``FLWR_HOME``); None: the environment's or ``~/.flwr``.
    environment : mapping of str to str
        Variables that Flower's commands get beside this process's.
    """

    name: str = ""
    home: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, app: Path, run_config: Mapping[str, Value]) -> int:
        """Start a run and return its id.

        Raises
        ------
        FederationError
            With Flower's reason.
        """
        with tempfile.TemporaryDirectory(prefix="plfl-") as folder:
            staged, options = stage_app(app, run_config, Path(folder))
            answer = self._flwr("run", staged, self.name, *options)
        if not answer.get("success") or not answer.get("run-id"):
            raise FederationError(f"Flower did not start the run: {_reason(answer)}")
        return int(str(answer["run-id"]))

    def status(self, run_id: int) -> tuple[str, str]:
        """Return Flower's status of a run, such as ``finished:failed``, and the details.

        Raises
        ------
        FederationError
            If the SuperLink does not answer.
        """
        run = self.runs("--run-id", str(run_id))[0]
        return str(run["status"]), str(run["status-details"])

    def log(self, run_id: int) -> Iterator[str]:
        """Yield the lines of a run's log as it grows, until Flower says no more."""
        command = [str(Path(flower_scripts()) / "flwr"), "log", str(run_id), self.name, "--stream"]
        process = subprocess.Popen(
            [word for word in command if word], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            env=self._environment,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield from map(uncoloured, process.stdout)
        finally:
            process.kill()
            process.wait()

    def end(self, run_id: int) -> tuple[str, str]:
        """Wait until a run is over; return what `status` says of it."""
        while (found := self.status(run_id))[0] in ACTIVE:
            time.sleep(1.0)
        return found

    def runs(self, *options: str) -> list[dict[str, Any]]:
        """Return what Flower lists of its runs, the newest first.

        Raises
        ------
        FederationError
            If the SuperLink does not answer.
        """
        # `flwr run --stream` exits 0 whatever became of the run. Delete the asking for a run's end
        # when it exits non-zero if the run failed.
        answer = self._flwr("list", self.name, *options)
        runs = answer.get("runs")
        if not isinstance(runs, list) or (options and not runs):
            raise FederationError(f"The SuperLink does not answer: {_reason(answer)}")
        for run in runs:
            if run["status-details"] == "N/A":  # Flower's word for none
                run["status-details"] = ""
        return runs

    def stop(self, run_id: int) -> None:
        """Stop a run if Flower still counts it as active."""
        with contextlib.suppress(FederationError):
            if self.status(run_id)[0] in ACTIVE:
                self._flwr("stop", str(run_id), self.name)

    def reachable(self) -> bool:
        """Tell whether the SuperLink answers."""
        return "runs" in self._flwr("list", self.name, "--limit", "1")

    @property
    def _environment(self) -> dict[str, str]:
        home = {"FLWR_HOME": str(self.home)} if self.home else {}
        quiet = {"FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        return {**os.environ, **quiet, **self.environment, **home}

    def _flwr(self, *arguments: str) -> dict[str, object]:
        scripts = flower_scripts()
        command = [str(Path(scripts) / "flwr"), *filter(None, arguments), "--format", "json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=120,
                stdin=subprocess.DEVNULL, start_new_session=True,
                env=self._environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error-message": "no answer within 120 s"}
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        return {"error-message": (done.stderr or done.stdout).strip()}


def uncoloured(text: str) -> str:
    """Return a log's text without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def stage_app(app: Path, run_config: Mapping[str, Value], folder: Path) -> tuple[str, list[str]]:
    """Lay an app and its run config into a folder, as ``flwr run`` takes them.

    Only the app's own files: runs, data and caches beside it must not be packed. Returns where
    the app is, and the options that name the run config.
    """
    staged, config = folder / "app", folder / "run-config.toml"
    staged.mkdir(exist_ok=True)
    for file in app.iterdir():
        if file.is_file() and (file.suffix in (".py", ".toml") or file.stem == "LICENSE"):
            shutil.copy(file, staged)
    config.write_text(toml(run_config), encoding="utf-8")
    return str(staged), ["--run-config", str(config)]


def flower_scripts() -> str:
    """Return the folder of Flower's commands in this Python's own environment.

    Raises
    ------
    FederationError
        If they are not installed.
    """
    folders = [
        sysconfig.get_path("scripts"),
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    ]
    found = shutil.which("flower-superlink", path=os.pathsep.join(folders))
    if found is None:
        raise FederationError(
            f"Flower's commands are not installed for {sys.executable}. "
            "Install them with: pip install 'flwr[simulation]'"
        )
    return str(Path(found).parent)


def _reason(answer: Mapping[str, object]) -> str:
    lines = str(answer.get("error-message") or "no reason given").splitlines()
    return " ".join(line.strip(" │╭╰─╮╯") for line in lines[-3:]).strip()
