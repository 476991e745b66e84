"""The command that runs a policy's script in a federation whose nodes reward it."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pluralllm_fl.cli.console import guarded, output
from pluralllm_fl.cli.federate import flower_home
from pluralllm_fl.cli.interrupts import one_interrupt
from pluralllm_fl.cli.settings import Assignments, gather_finished
from pluralllm_fl.config import RunConfig, app_directory
from pluralllm_fl.errors import FederationError
from pluralllm_fl.runs.lookup import resolve_run
from pluralllm_fl.runs.record import RunRecord


@guarded
def federated(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run, or the newest in it.")],
    script: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT",
            exists=True,
            dir_okay=False,
            help="Python file with a ServerApp `app`.",
        ),
    ],
    assignments: Assignments = None,
) -> None:
    """Run a script in RUN's federation, simulated or deployed, whose nodes reward its policy."""
    folder = resolve_run(run)
    record = RunRecord.read(folder, "config")
    config = gather_finished(folder, record, assignments or [])
    with _app(script) as app, one_interrupt():
        if record.mode == "deployment":
            _deployed(config, app)
        else:
            _simulated(config, app)


@contextlib.contextmanager
def _app(script: Path) -> Iterator[Path]:
    """Yield the Flower app with the script in place of its server's side."""
    from pluralllm_fl.processes.flower import stage_app

    with tempfile.TemporaryDirectory(prefix="plfl-") as folder:
        staged, _ = stage_app(app_directory(), {}, Path(folder))
        shutil.copy(script, Path(staged) / "server_app.py")
        yield Path(staged)


def _simulated(config: RunConfig, app: Path) -> None:
    from pluralllm_fl.processes.flower import uncoloured
    from pluralllm_fl.processes.launcher import PrivateSuperLink, last_lines

    run = Path(config.resume)
    nodes, log = len(RunRecord.read(run, "dataset").groups), run / "federated.log"
    log.unlink(missing_ok=True)
    log.touch()
    with log.open(encoding="utf-8", errors="replace") as lines:

        def tick() -> bool:
            for line in lines:
                _show(uncoloured(line))
            return False

        with PrivateSuperLink(threads=config.threads) as superlink:
            outcome = superlink.run(
                app, config.to_run_config(), supernodes=nodes, gpus=0.0, log=log, tick=tick
            )
    if outcome.status != "completed":
        raise FederationError(outcome.details or last_lines(log) or f"The run {outcome.status}.")


def _deployed(config: RunConfig, app: Path) -> None:
    from pluralllm_fl.processes.flower import FlowerConnection

    home = flower_home(Path(config.resume))
    connection = FlowerConnection("federation" if home else "", home)
    run_id = connection.start(app, config.to_run_config())
    try:
        for line in connection.log(run_id):
            _show(line)
        status, details = connection.end(run_id)
    except BaseException:
        connection.stop(run_id)
        raise
    if status != "finished:completed":
        raise FederationError(details or f"Flower says: {status}.")


def _show(line: str) -> None:
    output().print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
