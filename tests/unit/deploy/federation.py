"""The commands that write a federation's folder, and what the tests write with them."""

import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import strategies as st
from typer.testing import Result

from tests.command import invoke

SEEN = ("Germany", "India (Current national sample)", """it's "x"=日本 \\$HOME""")
UNSEEN = ("日本",)
SLUGS = {"germany", "india-current-national-sample", "it-s-x-home", "group"}
HOSTS = ("fed.example.org", "192.0.2.7", "2001:db8::1")
GROUP_NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters=";"), min_size=1, max_size=60
).filter(lambda name: name == name.strip())


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def deploy(*arguments: object) -> Result:
    return invoke("deploy", *arguments)


def init(folder: Path, *more: str, groups: str = "A;B", server: str = "localhost") -> Result:
    return deploy("init", folder, "--groups", groups, "--server", server, *more)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_private(folder: Path) -> None:
    """Nobody but the owner can read anything in the folder."""
    for path in (folder, *folder.rglob("*")):
        private = 0o700 if path.is_dir() or path.suffix == ".sh" else 0o600
        assert stat.S_IMODE(path.lstat().st_mode) == private, path
