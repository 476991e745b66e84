"""Vectors on disk, keyed by content and shared by parallel processes."""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import BaseFileLock, FileLock, Timeout

from pluralllm_fl.errors import EmbeddingError

logger = logging.getLogger(__name__)

_FILE = "embeddings-v1.sqlite"
_KEYS_PER_QUERY = 1000
_BUSY_SECONDS = 60.0
PATIENCE_SECONDS = 5.0  # then a process says whom it waits for
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def default_cache_dir() -> Path:
    """Return ``$PLURALLM_CACHE``, else ``~/.cache/pluralllm-fl``."""
    if chosen := os.environ.get("PLURALLM_CACHE"):
        return Path(chosen).expanduser()
    try:
        return Path.home() / ".cache" / "pluralllm-fl"
    except RuntimeError:
        raise EmbeddingError(
            "The home folder is unknown, so there is no place for the embedding cache. "
            "Set embedding-cache to a writable folder."
        ) from None


class VectorCache:
    """One SQLite file with vectors (key -> float32 bytes) and small facts about model files.

    Use as a context manager: the connection lives as long as the ``with`` block. Any number of
    processes may read and write at once.

    Parameters
    ----------
    folder : Path
        Created if absent.

    Raises
    ------
    EmbeddingError
        Here and in every method, if the folder cannot be written, the disk is full or the file is
        damaged; the message says what to do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / _FILE

    def __enter__(self) -> Self:
        with self._clear_errors():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None
            )
            try:
                if not self._has_schema():
                    self._create_schema()
            except BaseException:
                self._connection.close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the vectors that are there."""
        found: dict[bytes, bytes] = {}
        with self._clear_errors():
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                part = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, vector FROM vectors WHERE key IN ({marks})"
                found.update(self._connection.execute(query, part))
        return found

    def write(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Add vectors in one transaction; keys that are there already stay as they are."""
        with self._clear_errors(), self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", items)

    def fact(self, name: str) -> str | None:
        """Return a remembered fact about a model file."""
        with self._clear_errors():
            row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,))
            found = row.fetchone()
        return None if found is None else str(found[0])

    def remember(self, name: str, value: str) -> None:
        """Keep a fact, so that no later process needs to work it out again."""
        with self._clear_errors(), self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a lock between processes; it is released if its holder dies.

        Who asks for it again at once waits behind those who wait already: they stand at the front
        of a queue, which is a second lock.
        """
        path = self.folder / "locks" / f"{name}.lock"
        lock, front, holder = FileLock(path), FileLock(f"{path}.next"), path.with_suffix(".holder")
        with self._clear_errors():
            self._acquire(front, holder)
            try:
                self._acquire(lock, holder)
            finally:
                front.release()
            holder.write_text(str(os.getpid()))
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: BaseFileLock, holder: Path) -> None:
        try:
            lock.acquire(timeout=PATIENCE_SECONDS)
        except Timeout:
            known = f"process {holder.read_text()}" if holder.exists() else "another process"
            logger.warning(
                "Waiting for %s, which embeds texts with the same language model (%s). What it "
                "has done is not embedded again.", known, lock.lock_file,
            )  # fmt: skip
            lock.acquire()

    def _has_schema(self) -> bool:
        return bool(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _create_schema(self) -> None:
        # Switching to WAL ignores the busy timeout, hence the lock.
        with self.exclusive("schema"):
            if self._has_schema():
                return
            with closing(self._connection.execute("PRAGMA journal_mode = WAL")):
                pass
            with self._transaction():
                self._connection.execute(
                    "CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
                )
                self._connection.execute(
                    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
                )
                self._connection.execute("PRAGMA user_version = 1")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE:
                raise self.damaged(str(error)) from error
            raise self._unusable(str(error)) from error
        except OSError as error:
            raise self._unusable(str(error)) from error

    def damaged(self, reason: str) -> EmbeddingError:
        """Build the error for a file whose content makes no sense."""
        return EmbeddingError(
            f"The embedding cache {self.path} is damaged ({reason}). Delete {self.path} and, if "
            f"present, {_FILE}-wal and {_FILE}-shm beside it, then run again: only embeddings "
            "are kept there, and they are computed anew."
        )

    def _unusable(self, reason: str) -> EmbeddingError:
        return EmbeddingError(
            f"The embedding cache {self.path} cannot be used ({reason}). Make room or mend the "
            "permissions, or set embedding-cache (or PLURALLM_CACHE) to a writable folder."
        )
