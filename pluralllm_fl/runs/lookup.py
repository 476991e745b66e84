"""Finding runs on disk and closing those whose server could not."""

import time
from pathlib import Path
from typing import Literal

from pluralllm_fl.errors import ArtefactError, nearest
from pluralllm_fl.runs import events
from pluralllm_fl.runs.artefacts import RunDirectory, is_claimed
from pluralllm_fl.runs.record import RunRecord


def resolve_run(path: Path, *, completed: bool = True) -> Path:
    """Return the run directory that a user means.

    Parameters
    ----------
    path : Path
        A run directory, or an output directory that holds some: then its newest run.
    completed : bool
        Consider only completed runs in an output directory; otherwise only the others.

    Raises
    ------
    ArtefactError
        If there is no such run.
    """
    try:
        path = path.expanduser().resolve()
        found = (path / "run.json").is_file()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown ~user, …
        raise ArtefactError(f"'{str(path)[:80]}' is no usable path: {error}.") from None
    if found:
        return path
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ArtefactError(f"There is no run at {path}.{nearest(path.name, siblings)}")
    runs = [(RunRecord.read(file.parent), file.parent) for file in path.glob("*/run.json")]
    fitting = [
        (run.started, folder) for run, folder in runs if (run.status == "completed") == completed
    ]
    if not fitting:
        kind = "completed run" if completed else "run to resume"
        raise ArtefactError(f"{path} holds no {kind} ({len(runs)} runs in all).")
    return max(fitting)[1]


def close_run(run: Path, status: Literal["failed", "interrupted"], error: str | None) -> None:
    """Write the end of a run whose server was ended before it could; leave one that goes on."""
    # The lock first: a server that ends in between has then written its own end.
    if is_claimed(run) or not (run / "run.json").is_file():
        return
    directory = RunDirectory.open(run)
    if directory.run.status != "running":
        return
    completed = _completed_rounds(directory.metrics)
    directory.rewind_events(completed)
    directory.append_event(
        {"event": "run_finished", "time": time.time(), "status": status, "error": error}
    )
    directory.end(status, error, completed)


def _completed_rounds(metrics: Path) -> int:
    """Return the last round with a checkpoint: where a resumed run goes on."""
    completed = 0
    for _, event in events.read(metrics):
        if event["event"] == "checkpoint":
            completed = event.get("round", 0)
    return completed
