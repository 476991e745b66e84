"""Keep one run of a deployed federation going: start it, follow it, resume it when it falls.

Only Flower's command line and the run directory are used. A server app holds the lock of its
run directory for as long as it lives, so a run that is in nobody's hands can be told from one
that goes on, whatever Flower's database still says after a crash.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pluralllm_fl.config import RunConfig, Value, app_directory
from pluralllm_fl.errors import ArtefactError, FederationError
from pluralllm_fl.federation import checkpoint
from pluralllm_fl.formats import toml
from pluralllm_fl.processes.launcher import flower_scripts, stage_app
from pluralllm_fl.runs.artefacts import is_claimed
from pluralllm_fl.runs.lookup import close_run, read_json

# A server app that has not taken its run directory after this long never will.
START_SECONDS = 120.0
# Attempts in a row that complete no round before the supervisor gives up.
ATTEMPTS = 3
PAUSE_SECONDS = 5.0
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
    """

    name: str = ""
    home: Path | None = None

    def start(self, app: Path, run_config: Mapping[str, Value]) -> int:
        """Start a run and return its id.

        Raises
        ------
        FederationError
            With Flower's reason.
        """
        with tempfile.TemporaryDirectory(prefix="plfl-") as folder:
            staged, config = Path(folder) / "app", Path(folder) / "run-config.toml"
            staged.mkdir()
            stage_app(app, staged)
            config.write_text(toml(run_config), encoding="utf-8")
            answer = self._flwr("run", str(staged), self.name, "--run-config", str(config))
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
        answer = self._flwr("list", self.name, "--run-id", str(run_id))
        runs = answer.get("runs")
        if not isinstance(runs, list) or not runs:
            raise FederationError(f"The SuperLink does not answer: {_reason(answer)}")
        return str(runs[0]["status"]), str(runs[0]["status-details"])

    def stop(self, run_id: int) -> None:
        """Stop a run if Flower still counts it as active."""
        with contextlib.suppress(FederationError):
            if self.status(run_id)[0] in ACTIVE:
                self._flwr("stop", str(run_id), self.name)

    def reachable(self) -> bool:
        """Tell whether the SuperLink answers."""
        return "runs" in self._flwr("list", self.name, "--limit", "1")

    def _flwr(self, *arguments: str) -> dict[str, object]:
        scripts = flower_scripts()
        home = {"FLWR_HOME": str(self.home)} if self.home else {}
        command = [str(Path(scripts) / "flwr"), *filter(None, arguments), "--format", "json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=120,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "FLWR_DISABLE_UPDATE_CHECK": "1",
                     "FLWR_TELEMETRY_ENABLED": "0", **home},
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


class Supervisor:
    """Brings one run to its end.

    Parameters
    ----------
    connection : FlowerConnection
        Where the run goes on.
    config : RunConfig
        The run, with output-dir and run-name.
    tell : callable
        Takes one line for the engineer at a time.
    tick : callable
        Called a few times a second.
    """

    def __init__(
        self,
        connection: FlowerConnection,
        config: RunConfig,
        tell: Callable[[str], None],
        tick: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.config = config
        self.tell = tell
        self.tick = tick
        self.run = Path(config.output_dir) / config.run_name

    def bring_to_end(self) -> Path:
        """Start, or go on with, the run until it is completed; return its directory.

        Raises
        ------
        FederationError
            If the run was stopped through Flower, or fails repeatedly without completing a round.
        """
        close_run(self.run, "interrupted", "the server app was killed.")
        fruitless, before = 0, self._completed()
        while True:
            if not is_claimed(self.run):
                if self._status() == "completed" and before >= self.config.num_server_rounds:
                    return self.run
                self._await_superlink()
                self._bury()
                run_id: int | None = self.connection.start(app_directory(), self._run_config())
            else:
                self.tell(f"{self.run} goes on; following it.")
                run_id = None
            cause = self._follow(run_id)
            if self._status() == "completed":
                return self.run
            done = self._completed()
            fruitless = 0 if done > before else fruitless + 1
            if fruitless >= ATTEMPTS or not (self.run / "run.json").is_file():
                raise FederationError(cause)
            before = done
            self.tell(f"The run fell after round {done}: {cause} It is resumed.")
            self._wait(PAUSE_SECONDS)

    def _follow(self, run_id: int | None) -> str:
        """Wait until the server app has ended; return why."""
        began, claimed = time.monotonic(), run_id is None
        status, details = "", ""
        while True:
            self._wait(1.0)
            if is_claimed(self.run):
                claimed = True
                continue
            if run_id is not None:
                try:
                    status, details = self.connection.status(run_id)
                except FederationError as error:
                    status, details = "", str(error)
            waiting = status in ACTIVE and time.monotonic() - began < START_SECONDS
            if claimed or not waiting:
                break
        if status == "finished:stopped":
            close_run(self.run, "interrupted", None)
            raise FederationError(
                "The run was stopped with `flwr stop`. Continue it with: "
                f"pluralllm resume {self.run}"
            )
        cause = self._error() or details or "the server app was killed."
        close_run(self.run, "interrupted", cause)
        return cause

    def _run_config(self) -> dict[str, Value]:
        """Return the run config of a new run, or that of its continuation."""
        values = self.config.to_run_config() | {"resume": ""}
        if not (self.run / "run.json").is_file():
            return values
        try:
            checkpoint.newest(self.run / "checkpoints")
        except ArtefactError:
            spare = self.run.with_name(f"{self.run.name}.unfinished")
            shutil.rmtree(spare, ignore_errors=True)
            self.run.rename(spare)
            self.tell(f"{self.run} has no completed round and begins again; see {spare.name}.")
            return values
        return values | {"resume": str(self.run)}

    def _bury(self) -> None:
        """Stop what is left of the run's last server app.

        Flower notices its death after a minute, and until then the nodes wait for its messages.
        """
        last = self._record().get("flower-run")
        if isinstance(last, int):
            self.connection.stop(last)

    def _await_superlink(self) -> None:
        told = False
        while not self.connection.reachable():
            if not told:
                self.tell("The SuperLink does not answer; waiting for it.")
                told = True
            self._wait(PAUSE_SECONDS)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tick()
            time.sleep(0.2)

    def _record(self) -> dict[str, object]:
        return read_json(self.run / "run.json") if (self.run / "run.json").is_file() else {}

    def _status(self) -> str:
        return str(self._record().get("status", ""))

    def _error(self) -> str:
        return str(self._record().get("error") or "")

    def _completed(self) -> int:
        done = self._record().get("completed_rounds", 0)
        return done if isinstance(done, int) else 0


def _reason(answer: Mapping[str, object]) -> str:
    lines = str(answer.get("error-message") or "no reason given").splitlines()
    return " ".join(line.strip(" │╭╰─╮╯") for line in lines[-3:]).strip()
