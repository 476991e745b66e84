"""run.json: what a run says of itself, for all who write or read it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, Self, get_origin, get_type_hints

from pluralllm_fl.errors import ArtefactError

SCHEMA = 1


@dataclass(frozen=True)
class RunRecord:
    """The entries of run.json; what an older run does not say has its default.

    ``status`` is running, completed, failed or interrupted; ``mode`` simulation or deployment.
    ``dataset`` holds name, fingerprint, by group the number of questions and, if it was generated
    to fit the nodes, how many groups were ``generated``; ``embedding`` is the language model's
    fingerprint, ``flower_run`` the id of the run in Flower's SuperLink.
    """

    schema: int = 0
    status: str = ""
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    started: str = ""
    finished: str | None = None
    completed_rounds: int = 0
    embedding: str | None = None
    mode: str | None = None
    flower_run: int | None = None

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Take the entries that have a field, and of these what is of its kind."""
        kinds = {name: _kind(hint) for name, hint in get_type_hints(cls).items()}
        # Earlier versions wrote flower-run.
        given = {name.replace("-", "_"): value for name, value in entries.items()}
        return cls(**{n: v for n, v in given.items() if n in kinds and isinstance(v, kinds[n])})

    @classmethod
    def read(cls, run: Path, *needed: str) -> Self:
        """Read the run.json of a run directory.

        Parameters
        ----------
        run : Path
            The run directory.
        needed
            Entries without which the reader cannot go on.

        Raises
        ------
        ArtefactError
            If the file is missing, damaged or without one of these.
        """
        path = run / "run.json"
        record = cls.from_json(read_json(path))
        for name in needed:
            if not getattr(record, name):
                raise ArtefactError(
                    f"{path} is damaged: it holds no {name}. Restore it from a copy."
                )
        return record

    @property
    def groups(self) -> Mapping[str, int]:
        """The number of questions of every group that took part."""
        return mapping(self.dataset.get("groups"))


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of a run directory.

    Raises
    ------
    ArtefactError
        If it is missing or damaged.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise ArtefactError(f"{path} is not a file.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} does not hold a JSON object.")
    return value


def now() -> str:
    """Return the time as run.json holds it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def number(value: object) -> float | None:
    """Return a finite number out of JSON, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON's integers have no bounds
        return None
    return found if math.isfinite(found) else None


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object out of JSON, else an empty one."""
    return value if isinstance(value, dict) else {}


def _kind(hint: Any) -> Any:
    """Return what `isinstance` takes of an annotation: itself, or what is around its brackets."""
    return hint if get_origin(hint) in (None, UnionType) else get_origin(hint)
