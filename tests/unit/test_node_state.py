"""A node's residuals on disk: which round starts from which, damage, full disk, tidiness."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.federation.node_state import MAX_AGE, NodeState

pytestmark = pytest.mark.fast

SIZE = 5


def value(number: float) -> np.ndarray:
    return np.full(SIZE, number, dtype=np.float32)


def found(state: NodeState, server_round: int) -> float | None:
    residual = state.residual(server_round, SIZE)
    return None if residual is None else float(residual[0])


def files(state: NodeState) -> list[str]:
    return sorted(path.name for path in state.folder.iterdir())


def test_every_round_starts_from_the_one_before_also_when_it_is_repeated(tmp_path: Path) -> None:
    state = NodeState(tmp_path, "run-1", "Japan")
    assert found(state, 1) is None
    for server_round in (1, 2, 2, 3):
        state.save(server_round, value(server_round), 1)
        assert found(state, server_round) == (server_round - 1 or None)
    # A round that this node took no part in changes nothing.
    assert found(NodeState(tmp_path, "run-1", "Japan"), 9) == 3
    assert NodeState(tmp_path, "run-2", "Japan").residual(9, SIZE) is None
    assert NodeState(tmp_path, "run-1", "Peru").residual(9, SIZE) is None


@pytest.mark.parametrize("every", [1, 3])
def test_whatever_a_resume_needs_is_kept_and_nothing_else(tmp_path: Path, every: int) -> None:
    """The server may resume from either of its two checkpoints."""
    state = NodeState(tmp_path, "run", "Japan")
    trained = [1, 2, 3, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17, 18, 19]
    for server_round in trained:
        state.save(server_round, value(server_round), every)
        checkpoints = [c for c in range(server_round) if c % every == 0][-2:]
        for checkpoint in checkpoints:
            expected = max((n for n in trained if n <= checkpoint), default=None)
            assert found(state, checkpoint + 1) == expected
        assert len(files(state)) <= 2 * every + 1
    state.save(17, value(-17), every)
    assert found(state, 99) == -17  # rounds 18 and 19 were undone


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(path.read_bytes()[:-3] + b"abc"),
        lambda path: path.write_bytes(b"\xff" * 200),
        lambda path: save_file({"residual": value(1)}, path),
        lambda path: save_file({**load_file(path), "residual": value(2)}, path),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_file_counts_as_none(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    state = NodeState(tmp_path, "run", "Japan")
    state.save(1, value(1), 1)
    damage(state.folder / "residual-0001.safetensors")  # type: ignore[operator]
    assert found(state, 2) is None
    assert "residual-0001.safetensors cannot be used" in caplog.text
    state.save(2, value(2), 1)
    assert found(state, 3) == 2


def test_the_residual_of_another_model_counts_as_none(tmp_path: Path) -> None:
    state = NodeState(tmp_path, "run", "Japan")
    state.save(1, value(1), 1)
    assert state.residual(2, SIZE + 1) is None


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    state = NodeState(tmp_path / "new" / "nodes", "run", "Japan")
    state.save(1, value(1), 1)
    for folder in (state.root, state.run, state.folder):
        assert folder.stat().st_mode & 0o777 == 0o700
    for path in state.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["../../out", "a/b", "", "..", "\0", "x" * 500, "Ärger"])
def test_names_from_elsewhere_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "nodes"
    state = NodeState(root, name, name)
    state.save(1, value(1), 1)
    assert found(state, 2) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["nodes"]
    assert state.folder.parent.parent == root


def test_full_disk_is_an_error_in_words_and_keeps_the_last_round(small_disk: Path) -> None:
    state = NodeState(small_disk, "run", "Japan")
    state.save(1, value(1), 1)
    with pytest.raises(ArtefactError, match=r"No space left on device.*state-dir"):
        state.save(2, np.zeros(100_000, np.float32), 1)
    assert files(state) == ["residual-0001.safetensors"]
    assert found(state, 2) == 1


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a file")
    with pytest.raises(ArtefactError, match=r"keep its residual.*state-dir"):
        NodeState(tmp_path / "nodes", "run", "Japan").save(1, value(1), 1)


def age(folder: Path, seconds: float) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - seconds,) * 2)


def test_old_runs_are_deleted_and_what_is_not_ours_never(tmp_path: Path) -> None:
    old, recent, mixed = (NodeState(tmp_path, run, "Japan") for run in ("old", "recent", "mixed"))
    for state in (old, recent, mixed):
        state.save(1, value(1), 1)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "residual-0001.safetensors").touch()
    (mixed.folder / "notes.txt").touch()
    age(tmp_path, MAX_AGE + 60)
    recent.save(2, value(2), 1)
    assert old.run.exists()  # looked at when a new run begins
    NodeState(tmp_path, "new", "Japan").save(1, value(1), 1)
    assert not old.run.exists()
    assert found(recent, 3) == 2
    assert (mixed.folder / "notes.txt").exists()
    assert (tmp_path / "documents" / "residual-0001.safetensors").exists()


def test_parts_of_an_interrupted_write_are_cleared_away(tmp_path: Path) -> None:
    state = NodeState(tmp_path, "run", "Japan")
    state.save(1, value(1), 1)
    part = state.folder / ".residual-0001.safetensors.k2j3"
    part.touch()
    state.save(2, value(2), 1)
    assert part.exists()  # its writer may still be at work
    os.utime(part, (time.time() - 7200,) * 2)
    state.save(3, value(3), 1)
    assert not part.exists()
