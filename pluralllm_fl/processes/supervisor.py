"""Keep one run of a deployed federation going: start it, follow it, resume it when it falls.

Only Flower's command line and the run directory are used. A server app holds the lock of its
run directory for as long as it lives, so a run that is in nobody's hands can be told from one
that goes on, whatever Flower's database still says after a crash.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pluralllm_fl.config import RunConfig, Value, app_directory
from pluralllm_fl.errors import ArtefactError, FederationError
from pluralllm_fl.processes.flower import ACTIVE, FlowerConnection
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.runs.artefacts import is_claimed
from pluralllm_fl.runs.lookup import close_run
from pluralllm_fl.runs.record import RunRecord

# A server app that has not taken its run directory after this long never will.
START_SECONDS = 120.0
# Attempts in a row that complete no round before the supervisor gives up.
ATTEMPTS = 3
PAUSE_SECONDS = 5.0


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
        fruitless, before = 0, self._record().completed_rounds
        while True:
            if not is_claimed(self.run):
                if self._record().status == "completed" and before >= self.config.num_server_rounds:
                    return self.run
                self._await_superlink()
                self._bury()
                run_id: int | None = self.connection.start(app_directory(), self._run_config())
            else:
                self.tell(f"{self.run} goes on; following it.")
                run_id = None
            cause = self._follow(run_id)
            if self._record().status == "completed":
                return self.run
            done = self._record().completed_rounds
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
        cause = self._record().error or details or "the server app was killed."
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
        last = self._record().flower_run
        if last is not None:
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

    def _record(self) -> RunRecord:
        return RunRecord.read(self.run) if (self.run / "run.json").is_file() else RunRecord()
