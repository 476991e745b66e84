"""Writing folders that hold secrets: all at once, and never readable by others."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pluralllm_fl.errors import ArtefactError, ConfigError

FOLDER = None
Files = dict[str, bytes | None]


def write_tree(root: Path, files: Mapping[str, bytes | None]) -> None:
    """Write files (None: an empty folder) under a folder that exists.

    Every mode is right from the first byte, whatever the umask: 0600, scripts and folders 0700.
    """
    for name, content in files.items():
        path = root / name
        _make(path if content is None else path.parent)
        if content is not None:
            mode = 0o700 if path.suffix == ".sh" else 0o600
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
                file.write(content)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Lend a temporary folder beside ``target``; rename it to ``target`` if all went well.

    Raises
    ------
    ArtefactError
        If it cannot be written; nothing is left behind.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise ArtefactError(f"Cannot write {target}: {error.strerror or error}.") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def free_folder(path: Path) -> Path:
    """Return the absolute path of a folder that is new or empty and outside every git tree.

    Raises
    ------
    ConfigError
        If it is none, or its path cannot stand in the files to be written.
    """
    folder = outside_git(path)
    if not str(folder).isprintable():
        raise ConfigError(f"{str(folder)!r}: choose a path without control characters.")
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror or error}.") from None
    if taken:
        raise ConfigError(
            f"{folder} is not empty. Choose a new folder; more nodes for a federation that is "
            "there already: pluralllm deploy add."
        )
    return folder


def outside_git(path: Path) -> Path:
    """Return the absolute path of a folder that is in no git work tree.

    Raises
    ------
    ConfigError
        If it is in one: the folder holds private keys, and a commit would publish them.
    """
    try:
        folder = path.expanduser().resolve()
        tree = next((p for p in (folder, *folder.parents) if (p / ".git").exists()), None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"'{str(path)[:80]}' is no usable path: {error}.") from None
    if tree is not None:
        raise ConfigError(
            f"{folder} lies in the git work tree {tree}. The folder holds private keys, which a "
            "commit would publish: choose a place outside."
        )
    return folder


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700)
