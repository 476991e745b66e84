"""What a node keeps from round to round on its own disk: the rounding error it still owes.

Below the state folder: ``<run>/<hash of the group>/residual-NNNN.safetensors``, written after the
training of round NNNN. A round that is repeated, or resumed from an older checkpoint, so starts
from the same residual as the first time and sends the same bits.
"""

import contextlib
import hashlib
import logging
import re
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from pluralllm_fl.artefacts import write_atomic
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.federation.updates import Residual

logger = logging.getLogger("flwr.pluralllm_fl")

# Folders of runs untouched for longer are deleted; seconds.
MAX_AGE = 30 * 24 * 3600
_ABANDONED = 3600
_RUN = "*-" + "[0-9a-f]" * 16
_GROUP = "[0-9a-f]" * 16
_FILE = "residual-*.safetensors"


class NodeState:
    """The residuals of one group in one run.

    Parameters
    ----------
    root : Path
        The state folder of this machine or user; made if absent.
    run_id : str
        Identity of the run, as the server tells it; any text.
    group : str
        Whose residuals these are, any text; several may share the folder.
    """

    def __init__(self, root: Path, run_id: str, group: str) -> None:
        # The readable part is for people; the id comes from the server and may hold anything.
        readable = re.sub(r"[^A-Za-z0-9_]+", "-", run_id)[:48].strip("-") or "run"
        self.root = root
        self.run = root / f"{readable}-{_digest(run_id)}"
        self.folder = self.run / _digest(group)

    def residual(self, server_round: int, size: int) -> Residual | None:
        """Return the residual that training of this round starts from; None: there is none.

        A damaged file counts as none: what it owed is lost, but training goes on.
        """
        earlier = [number for number in self._numbers() if number < server_round]
        if not earlier:
            return None
        path = self._path(max(earlier))
        try:
            tensors = load(path.read_bytes())
            residual = tensors["residual"]
            if tensors["sha256"].tobytes() != _checksum(residual):
                raise ValueError("its content was changed")
            if residual.shape != (size,) or residual.dtype != np.float32:
                raise ValueError("it is that of another model")
        except Exception as error:  # a damaged file can hold anything
            logger.warning("%s cannot be used (%s): starting without it.", path, error)
            return None
        return residual

    def save(self, server_round: int, residual: Residual, checkpoint_every: int) -> None:
        """Write the residual after training of this round; delete what no round can need.

        The server resumes from its last checkpoint, or from the one before if that is damaged.

        Raises
        ------
        ArtefactError
            If it cannot be written.
        """
        path = self._path(server_round)
        try:
            self._make_folders()
            digest = np.frombuffer(_checksum(residual), np.uint8)
            write_atomic(path, save({"residual": residual, "sha256": digest}), mode=0o600)
        except (OSError, ArtefactError) as error:
            cause = error.__context__ if isinstance(error, ArtefactError) else error
            raise ArtefactError(
                f"The node cannot keep its residual: {path.parent}: "
                f"{getattr(cause, 'strerror', None) or cause}. Free space there, or set state-dir "
                "in --node-config to a writable folder."
            ) from None
        self._tidy(server_round, server_round - 2 * checkpoint_every)

    def _make_folders(self) -> None:
        fresh = not self.run.is_dir()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if fresh:
            _prune(self.root)

    def _tidy(self, newest: int, oldest_resume: int) -> None:
        """Delete rounds that a resume undid and those before the last that it could start from."""
        numbers = self._numbers()
        start = max((n for n in numbers if n <= oldest_resume), default=0)
        stale = [self._path(n) for n in numbers if n < start or n > newest]
        stale += [path for path in self.folder.glob(f".{_FILE}.*") if _age(path) > _ABANDONED]
        with contextlib.suppress(OSError):
            for path in stale:
                path.unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        found = (re.fullmatch(r"residual-(\d+)", path.stem) for path in self.folder.glob(_FILE))
        return [int(match[1]) for match in found if match]

    def _path(self, server_round: int) -> Path:
        return self.folder / f"residual-{server_round:04d}.safetensors"


def _prune(root: Path) -> None:
    """Delete the residuals of old runs, and nothing else that may lie in the folder."""
    for run in root.glob(_RUN):
        groups = list(run.glob(_GROUP))
        files = [path for group in groups for path in group.glob(f"*{_FILE}*")]
        if all(_age(path) > MAX_AGE for path in (run, *groups, *files)):
            with contextlib.suppress(OSError):
                for path in files:
                    path.unlink(missing_ok=True)
                for folder in (*groups, run):
                    folder.rmdir()


def _age(path: Path) -> float:
    """Return the seconds since the last change; 0 if it is gone by now."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _checksum(residual: Residual) -> bytes:
    return hashlib.sha256(residual.tobytes()).digest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
