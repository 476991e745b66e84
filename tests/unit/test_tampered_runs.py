"""Files of a run that somebody changed are refused by name, whatever they hold now."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.runs.artefacts import RunDirectory, write_directory
from pluralllm_fl.runs.checkpoint import Checkpoint, RunState
from pluralllm_fl.runs.lookup import close_run
from pluralllm_fl.runs.progress import EventTail
from pluralllm_fl.runs.record import read_json

DEEP = b"[" * 10**5
ODD_FILES = {
    "deep": DEEP, "list": b"[]", "number": b"7", "null": b"null", "empty": b"", "broken": b"{]",
    "not text": b"\xff\xfe", "deep object": b'{"a": ' * 10**5,
}  # fmt: skip
ODD_LINES = {
    "deep": DEEP, "list": b"[]", "number": b"7", "null": b"null", "broken": b"{]",
    "not text": b"\xff", "empty": b"{}", "name": b'{"event": 7}', "no name": b'{"event": null}',
    "round": b'{"event": "checkpoint", "round": "7"}',
    "no round": b'{"event": "round", "round": null}',
    "NaN": b'{"event": "round", "round": NaN}',
    "time": b'{"event": "round", "round": 1, "time": "now"}',
}  # fmt: skip
GOOD = b'{"event": "round", "round": 1, "time": 10.0}'
odd_files = pytest.mark.parametrize("content", ODD_FILES.values(), ids=ODD_FILES)


@odd_files
def test_odd_json_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    for read in (lambda: read_json(tmp_path / "run.json"), lambda: RunDirectory.open(tmp_path)):
        with pytest.raises(ArtefactError, match=r"run\.json"):
            read()
    for command in (["audit"], ["resume"], ["simulate", "--resume"], ["predict"]):
        question = ["--question", "q", "--option", "a", "--option", "b"]
        options = question if command == ["predict"] else []
        result = CliRunner().invoke(app, [*command, str(tmp_path), *options])
        assert result.exit_code == 1, result.output
        assert "Unexpected error" not in result.output


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ArtefactError, match=r"run\.json is not a file"):
        read_json(tmp_path / "run.json")


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_odd_events(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    reads: list[Callable[[], Any]] = [
        lambda: RunDirectory(tmp_path).evaluation(0),
        lambda: RunDirectory(tmp_path).rewind_events(1),
        lambda: close_run(tmp_path, "failed", "test"),
        lambda: EventTail(log, 0.0).read(),
    ]
    before = log.read_bytes()
    for read in reads:
        with pytest.raises(ArtefactError, match=r"metrics\.jsonl(:2)? is damaged"):
            read()
        assert log.read_bytes() == before


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics.write_bytes(GOOD + b"\n" + GOOD[:20])
    directory.rewind_events(1)
    assert directory.metrics.read_bytes() == GOOD + b"\n"


def write_checkpoint(folder: Path) -> Path:
    progress = RunState({"weight": np.ones(3, dtype=np.float32)}, round=1)
    return checkpoint.write(folder, Checkpoint(progress, {"class": "x"}, {}))


def test_a_checkpoint_is_as_private_as_the_model(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        save_file({"weight": np.ones(3, dtype=np.float32)}, folder / "model.safetensors")

    write_directory(tmp_path / "model", fill)
    files = [*(tmp_path / "model").iterdir(), *write_checkpoint(tmp_path).iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@odd_files
def test_odd_states_of_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = write_checkpoint(tmp_path)
    (path / "state.json").write_bytes(content)
    with pytest.raises(ArtefactError, match="round-0001 is damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": {"../../secret": "0" * 64}},
        {"files": {}},
        {"array_names": None},
        {"array_names": ["other"]},
        {"array_names": [["weight"]]},
        {"round": None},
        {"seconds": "7"},
        {"strategy": 7},
    ],
)
def test_changed_states_with_a_right_hash(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_checkpoint(tmp_path)
    rewrite(path, change)
    with pytest.raises(ArtefactError, match="round-0001 is damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_changed_weights_with_a_right_hash(tmp_path: Path, value: float) -> None:
    path = write_checkpoint(tmp_path)
    data = save({"weight": np.full(3, value, dtype=np.float32)})
    (path / "arrays.safetensors").write_bytes(data)
    files = json.loads((path / "state.json").read_text())["files"]
    rewrite(path, {"files": files | {"arrays.safetensors": hashlib.sha256(data).hexdigest()}})
    with pytest.raises(ArtefactError, match=r"damaged: arrays\.safetensors holds NaN or values"):
        checkpoint.read(path)


def rewrite(path: Path, change: dict[str, Any]) -> None:
    body = json.loads((path / "state.json").read_text()) | change
    body.pop("sha256")
    body["sha256"] = checkpoint._digest(body)
    (path / "state.json").write_text(json.dumps(body))
