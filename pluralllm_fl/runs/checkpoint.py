"""Checkpoints: the state after a completed round, checked on reading."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from pluralllm_fl.arrays import TOO_LARGE, Arrays, sound
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.runs.artefacts import write_directory
from pluralllm_fl.runs.events import Event

SCHEMA = 1
KEEP = 2
_FILES = ("arrays.safetensors", "strategy.safetensors", "best.safetensors")


@dataclass(slots=True)
class RunState:
    """What the round loop knows after ``round`` rounds; seconds and bytes of the whole run.

    `arrays` are the global model's, by name, any shape.
    """

    arrays: Arrays
    round: int = 0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    aggregated_rounds: int = 0
    evaluation: Event | None = None


@dataclass(slots=True)
class Checkpoint:
    """A `RunState` with the states of strategy and early stopping: JSON and arrays of any shape."""

    progress: RunState
    strategy: dict[str, Any]
    strategy_arrays: Arrays
    stopping: dict[str, Any] = field(default_factory=dict)
    best_arrays: Arrays = field(default_factory=dict)


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``round-NNNN`` atomically and drop all but the newest checkpoints."""
    p = checkpoint.progress
    files = {
        "arrays.safetensors": save_arrays(p.arrays),
        "strategy.safetensors": save_arrays(checkpoint.strategy_arrays),
    }
    if checkpoint.best_arrays:
        files["best.safetensors"] = save_arrays(checkpoint.best_arrays)
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "round": p.round,
        "seconds": p.seconds,
        "bytes_up": p.bytes_up,
        "bytes_down": p.bytes_down,
        "aggregated_rounds": p.aggregated_rounds,
        "evaluation": p.evaluation,
        "array_names": list(p.arrays),
        "strategy": checkpoint.strategy,
        "early_stopping": checkpoint.stopping,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    body["sha256"] = _digest(body)

    def fill(temporary: Path) -> None:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        (temporary / "state.json").write_text(json.dumps(body, indent=1), encoding="utf-8")

    path = folder / f"round-{p.round:04d}"
    write_directory(path, fill)
    for old in _listed(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest(folder: Path) -> Path:
    """Return the checkpoint of the last completed round.

    Raises
    ------
    ArtefactError
        If there is none.
    """
    paths = _listed(folder)
    if not paths:
        raise ArtefactError(f"{folder} holds no checkpoint: the run cannot be resumed.")
    return paths[-1]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ArtefactError
        If a file is missing, truncated or changed, or the checkpoint is of another schema.
    """
    try:
        return _read(path)
    except (
        OSError, LookupError, AttributeError, TypeError, ValueError, RecursionError,
        SafetensorError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(
            f"Checkpoint {path} is damaged: {reason}. Delete that folder to resume from the one "
            "before."
        ) from None


def _read(path: Path) -> Checkpoint:
    body = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(body, dict) or not isinstance(body.get("schema"), int):
        raise ValueError("state.json holds no schema")
    if body["schema"] != SCHEMA:  # whole, but not ours: nobody should delete it
        raise ArtefactError(
            f"Checkpoint {path} has schema {body['schema']}; this version of PluralLLM-FL reads "
            f"schema {SCHEMA}. Resume with the version that wrote it."
        )
    if body.pop("sha256", None) != _digest(body):
        raise ValueError("state.json was changed")
    arrays = {name: _read_arrays(path, name, digest) for name, digest in body["files"].items()}
    kinds = {"round": int, "seconds": float, "bytes_up": int, "bytes_down": int,
             "aggregated_rounds": int, "strategy": dict, "early_stopping": dict}  # fmt: skip
    if wrong := [key for key, kind in kinds.items() if not isinstance(body[key], kind)]:
        raise ValueError(f"state.json holds no possible {wrong[0]}")
    names = body["array_names"]
    model = arrays["arrays.safetensors"]
    best = arrays.get("best.safetensors", {})
    progress = RunState(
        arrays={name: model[name] for name in names},
        round=body["round"],
        seconds=body["seconds"],
        bytes_up=body["bytes_up"],
        bytes_down=body["bytes_down"],
        aggregated_rounds=body["aggregated_rounds"],
        evaluation=body["evaluation"],
    )
    return Checkpoint(
        progress=progress,
        strategy=body["strategy"],
        strategy_arrays=arrays["strategy.safetensors"],
        stopping=body["early_stopping"],
        best_arrays={name: best[name] for name in names} if best else {},
    )


def _read_arrays(path: Path, name: str, digest: str) -> Arrays:
    if name not in _FILES:
        raise ValueError(f"{name} is none of its files")
    data = (path / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{name} is truncated or was changed")
    arrays: Arrays = load_arrays(data)
    if name != "strategy.safetensors" and not all(map(sound, arrays.values())):
        raise ValueError(f"{name} holds NaN or {TOO_LARGE}")
    return arrays


def _listed(folder: Path) -> list[Path]:
    folders = (path for path in folder.glob("round-*") if re.fullmatch(r"round-\d+", path.name))
    return sorted(folders, key=lambda path: int(path.name.removeprefix("round-")))


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
