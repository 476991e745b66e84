"""deploy init: where it writes, and what it refuses."""

import fnmatch
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.deploy.federation import deploy, init


def test_next_steps_are_shown(tmp_path: Path) -> None:
    output = init(tmp_path / "fed").output
    for step in ("nodes/a", "./superlink.sh", "./gateway.sh", "./register.sh", "./run.sh", "/ca"):
        assert step in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--groups", "A;A", "--server", "h"), "Group 'A' is there twice"),
        (("--groups", "A", "--unseen", "A", "--server", "h"), "Group 'A' is there twice"),
        (("--groups", ";", "--server", "h"), "--groups is empty"),
        (("--groups", "A\nB", "--server", "h"), "control characters"),
        (("--groups", "A", "--server", ""), "--server is empty"),
        (("--groups", "A", "--server", "https://h"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "h:8443"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "a b"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "256.1.1.1"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "0.0.0.0"), "nodes cannot connect to it"),
        (("--groups", "A", "--server", "fe80::1%eth0"), "nodes cannot connect to it"),
        (("--groups", "A", "--server", "h", "--port", "443"), "Invalid value for '--port'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = deploy("init", tmp_path / "fed", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    result = init(tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert init(tmp_path).exit_code == 0
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("worktree", [False, True])
def test_a_git_tree_is_refused(tmp_path: Path, worktree: bool) -> None:
    tree = tmp_path / "project"
    tree.mkdir()
    if worktree:
        (tree / ".git").write_text("gitdir: elsewhere")
    else:
        (tree / ".git").mkdir()
    (tmp_path / "link").symlink_to(tree)
    for folder in (tree / "deep" / "fed", tmp_path / "link" / "fed"):
        result = init(folder)
        assert result.exit_code == 2
        assert f"lies in the git work tree {tree}" in result.output
    assert [path.name for path in tree.iterdir()] == [".git"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from pluralllm_fl.cli import main; main()"]
    command += ["deploy", "init", str(tmp_path / "fed"), "--groups", "A", "--server", "h"]
    answer = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; {shlex.join(command)}"],
        env=os.environ | {"COLUMNS": "250"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert "File too large" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_private_goes_to_the_docker_daemon() -> None:
    root = Path(__file__).resolve().parents[3]
    ignored = (root / ".dockerignore").read_text().splitlines()
    assert {".git", "runs/", "**/__pycache__/"} <= {*ignored}
    kept = [line for line in (root / ".gitignore").read_text().splitlines() if line]
    patterns = {line.strip("/").removeprefix("**/") for line in ignored}
    for line in kept:  # what git leaves out, docker does too
        name = line.strip("/")
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
