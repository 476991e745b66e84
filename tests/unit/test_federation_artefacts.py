"""Atomic writes, also on a full disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.runs.artefacts import (
    RunDirectory,
    is_claimed,
    write_atomic,
    write_directory,
)
from pluralllm_fl.runs.checkpoint import Checkpoint, RunState


def some_checkpoint(size: int, server_round: int = 1) -> Checkpoint:
    arrays = {"w": np.arange(size, dtype=np.float32)}
    return Checkpoint(RunState(arrays, round=server_round), {"class": "x", "vars": {}}, {})


def test_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "run.json"
    write_atomic(path, b"old")
    with pytest.raises(ArtefactError, match=r"run.json: No space left.*output-dir"):
        write_atomic(path, b"x" * 200_000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["run.json"]


def test_full_disk_keeps_the_old_checkpoint(small_disk: Path) -> None:
    checkpoint.write(small_disk, some_checkpoint(100))
    with pytest.raises(ArtefactError, match="No space left"):
        checkpoint.write(small_disk, some_checkpoint(100_000, 2))
    assert [p.name for p in small_disk.iterdir()] == ["round-0001"]
    assert checkpoint.read(checkpoint.newest(small_disk)).progress.round == 1


def test_full_disk_leaves_no_part_of_a_line(small_disk: Path) -> None:
    directory = RunDirectory(small_disk)
    directory.append_event({"event": "round", "round": 1})
    with pytest.raises(ArtefactError, match=r"metrics.jsonl: No space left"):
        directory.append_event({"event": "round", "text": "x" * 200_000})
    directory.append_event({"event": "round", "round": 2})
    lines = directory.metrics.read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]


def test_failed_sync_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match="No space left"):
        write_atomic(tmp_path / "run.json", b"x")
    with pytest.raises(ArtefactError, match="No space left"):
        write_directory(tmp_path / "model", lambda p: (p / "config.json").touch())
    assert not list(tmp_path.iterdir())


def test_device_that_is_full(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ArtefactError, match="Cannot write"):
        RunDirectory(tmp_path).append_event({"event": "round"})


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match=r"Cannot write .*Not a directory"):
        RunDirectory.create(tmp_path / "file" / "run")


def test_reader_never_sees_a_half_filled_folder(tmp_path: Path) -> None:
    write_directory(tmp_path / "model", lambda p: (p / "a").write_text("old"))  # type: ignore[arg-type,return-value]

    def fill(folder: Path) -> None:
        (folder / "a").write_text("new")
        raise ValueError("cannot go on")

    with pytest.raises(ValueError, match="cannot go on"):
        write_directory(tmp_path / "model", fill)
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for server_round in (8, 9, 10, 11):
        checkpoint.write(tmp_path, some_checkpoint(3, server_round))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-0010", "round-0011"]


def test_many_rounds_sort_by_number(tmp_path: Path) -> None:
    for server_round in (9_999, 10_000):
        checkpoint.write(tmp_path, some_checkpoint(3, server_round))
    assert checkpoint.newest(tmp_path).name == "round-10000"


def test_only_folders_named_like_checkpoints_count(tmp_path: Path) -> None:
    for name in ("round-0009.bak", "round-", "round-x"):
        (tmp_path / name).mkdir()
    checkpoint.write(tmp_path, some_checkpoint(3))
    assert checkpoint.newest(tmp_path).name == "round-0001"


@pytest.mark.parametrize(
    ("dataset", "start"),
    [("/x/my answers.csv", "my-answers-20"), ("opinionqa", "opinionqa-20"), ("/x/-.-", "run-20")],
)
def test_new_run_name_is_a_free_plain_name(tmp_path: Path, dataset: str, start: str) -> None:
    values = {"dataset": dataset, "output-dir": str(tmp_path), "seed": 4}
    config = RunConfig.default(values)
    names = set()
    for _ in range(5):
        name = config.new_run_name()
        (tmp_path / name).mkdir()
        names.add(name)
    assert len(names) == 5
    assert all(n.startswith(start) and "-seed4" in n and Path(n).name == n for n in names)


def test_events_of_later_rounds_are_dropped(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for event in (
        {"event": "run_started"}, {"event": "round", "round": 1}, {"event": "round", "round": 2},
        {"event": "reply_dropped", "round": 3}, {"event": "round", "round": 3},
        {"event": "run_finished", "status": "failed"},
    ):  # fmt: skip
        directory.append_event(event)
    with directory.metrics.open("a") as file:
        file.write('{"event": "rou')
    directory.rewind_events(2)
    kept = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [e["event"] for e in kept] == ["run_started", "round", "round", "reply_dropped"]


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunDirectory(tmp_path).append_event({"event": "round", "train_loss": float("nan")})


def test_a_run_belongs_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory.create(tmp_path / "run")
    assert not is_claimed(directory.path)
    holder = (
        "import sys, pathlib; from pluralllm_fl.runs.artefacts import RunDirectory;"
        "d = RunDirectory(pathlib.Path(sys.argv[1]));\n"
        "with d.claimed(): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(directory.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        assert is_claimed(directory.path)
        monkeypatch.setattr("pluralllm_fl.runs.artefacts.CLAIM_SECONDS", 0.2)
        with pytest.raises(ArtefactError, match="goes on in another process"), directory.claimed():
            pass
        process.kill()
        process.wait()
    assert not is_claimed(directory.path)
    with directory.claimed():
        assert is_claimed(directory.path)
