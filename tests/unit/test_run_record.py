"""run.json as all read it: of this version, of others, and damaged."""

import json
from pathlib import Path

import pytest

from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.record import RunRecord


def written(folder: Path, **entries: object) -> Path:
    (folder / "run.json").write_text(json.dumps(entries))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.update_run(status="running", config={"seed": 1}, seen=["A"], flower_run=7)
    directory.update_run(dataset={"name": "x", "fingerprint": None, "groups": {"A": 3}})
    found = RunRecord.read(tmp_path)
    assert found == directory.run == RunDirectory.open(tmp_path).run
    assert (found.status, found.seen, found.flower_run) == ("running", ["A"], 7)
    assert found.groups == {"A": 3}
    with pytest.raises(TypeError):
        directory.update_run(stauts="completed")


def test_runs_of_other_versions_are_read(tmp_path: Path) -> None:
    run = written(tmp_path, **{"status": "completed", "flower-run": 5, "of-later": [1], "seen": []})
    assert RunRecord.read(run) == RunRecord(status="completed", flower_run=5)


def test_entries_of_another_kind_count_as_absent(tmp_path: Path) -> None:
    run = written(tmp_path, status=3, config=[1], seen="A", dataset=None, completed_rounds="2")
    assert RunRecord.read(run) == RunRecord()
    for name in ("config", "seen"):
        with pytest.raises(ArtefactError, match=rf"run.json is damaged: it holds no {name}"):
            RunRecord.read(run, name)


def test_a_dataset_without_groups_has_none(tmp_path: Path) -> None:
    assert RunRecord.read(written(tmp_path, dataset={"groups": [1]})).groups == {}
