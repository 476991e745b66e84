"""The run directory: run.json, metrics.jsonl, model/ and checkpoints/, written atomically."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.runs import events
from pluralllm_fl.runs.events import Event
from pluralllm_fl.runs.record import RunRecord, now

_OUTCOMES = ("round", "evaluation", "checkpoint", "early_stopped")
_LOCK = ".lock"
# A supervisor that looks whether a run goes on takes its lock for an instant.
CLAIM_SECONDS = 5.0


class RunDirectory:
    """One run's artefacts under ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunRecord()

    @property
    def metrics(self) -> Path:
        """The event log."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a new run directory.

        Raises
        ------
        ArtefactError
            If it exists and is not empty, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ArtefactError(
                    f"{path} is not empty. Choose another run-name, or continue that run with "
                    f'resume = "{path}".'
                )
        except OSError as error:
            raise _cannot_write(path, error) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run directory to resume it.

        Raises
        ------
        ArtefactError
            If there is no readable run.
        """
        directory = cls(path)
        if not (path / "run.json").exists():
            raise ArtefactError(f"{path} holds no run (run.json is missing).")
        directory.run = RunRecord.read(path)
        return directory

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep every other process from running this run.

        Raises
        ------
        ArtefactError
            If one does already.
        """
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=CLAIM_SECONDS)
        except Timeout:
            raise ArtefactError(f"{self.path} goes on in another process.") from None
        try:
            yield
        finally:
            lock.release()

    def update_run(self, **fields: Any) -> None:
        """Set fields of run.json, by their names in `RunRecord`."""
        self.run = replace(self.run, **fields)
        self.write_json("run.json", asdict(self.run))

    def end(self, status: str, error: str | None, completed_rounds: int) -> None:
        """Say in run.json how the run ended, and after which round a resume would go on."""
        self.update_run(
            status=status, error=error, finished=now(), completed_rounds=completed_rounds
        )

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one JSON file atomically; NaN is refused."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(self.path / name, (text + "\n").encode())

    def append_event(self, event: Event) -> None:
        """Append one line to metrics.jsonl; after a failed write the file is as before."""
        line = (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            with self.metrics.open("ab") as file:
                size = file.tell()
                try:
                    file.write(line)
                    file.flush()
                except OSError:
                    os.truncate(self.metrics, size)
                    raise
        except OSError as error:
            raise _cannot_write(self.metrics, error) from None

    def evaluation(self, server_round: int) -> Event | None:
        """Return the first evaluation of a round in the event log; None if there was none."""
        for _, event in events.read(self.metrics):
            if (event["event"], event.get("round")) == ("evaluation", server_round):
                return event
        return None

    def rewind_events(self, last_round: int) -> None:
        """Drop what a run resumed after ``last_round`` does again.

        That is: later rounds, the evaluation of ``last_round`` where it came with the training of
        the next round, the old end with its warnings, and a torn last line. What happened to
        nodes stays.
        """
        if not self.metrics.is_file():
            return
        kept: list[bytes] = []
        saved = False
        for line, event in events.read(self.metrics):
            kind, number = event["event"], event.get("round", 0)
            again = (kind in _OUTCOMES and number > last_round) or (
                saved and (kind, number) == ("evaluation", last_round)
            )
            saved = saved or (kind, number) == ("checkpoint", last_round)
            if kind not in ("run_finished", "warning") and not again:
                kept.append(line)
        write_atomic(self.metrics, b"".join(kept))


def is_claimed(run: Path) -> bool:
    """Tell whether a living process runs this run."""
    if not (run / _LOCK).is_file():
        return False
    lock = FileLock(run / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that readers see the old or the new content, never a part.

    Raises
    ------
    ArtefactError
        If the file cannot be written; the old one is then untouched.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder, then rename it to ``path``.

    Raises
    ------
    ArtefactError
        If anything cannot be written; nothing is left behind and ``path`` is as before.
    """
    temporary, old = (path.parent / f".{path.name}.{os.getpid()}{end}" for end in ("", ".old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.iterdir():
            file.chmod(0o600)  # weights hold a part of each group's answers
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _sync(temporary)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    except Exception as error:
        # safetensors reports a full disk as its own error class
        if "os error" in str(error).lower():
            raise ArtefactError(f"Cannot write {path}: {error}.") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"Cannot write {path}: {error.strerror or error}. Free space or choose another output-dir."
    )
