"""Experiment trackers write into the run directory; a missing one names its extra."""

import importlib.util
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pluralllm_fl.errors import ConfigError
from tests.integration.inprocess import events, tiny_config, tiny_run


def needs(module: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(absent, reason=f"{module} is not installed")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that trackers must leave empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def logged(run: Path) -> dict[int, float]:
    return {e["round"]: e["unseen"]["alignment"] for e in events(run, "evaluation")}


def test_tensorboard_holds_the_numbers_of_the_event_log(tmp_path: Path, elsewhere: Path) -> None:
    run = tiny_run(tiny_config(tmp_path, trackers="tensorboard"))
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {point.step: point.value for point in board.Scalars("unseen/alignment")}
    assert shown == pytest.approx(logged(run))
    assert "seen_groups/Aland" in board.Tags()["scalars"]
    assert not list(elsewhere.iterdir())


@needs("mlflow")
def test_mlflow_holds_the_numbers_of_the_event_log(tmp_path: Path, elsewhere: Path) -> None:
    from mlflow.tracking import MlflowClient

    output = tmp_path / "é #1"
    run = tiny_run(tiny_config(output, trackers="mlflow", num_server_rounds=2))
    tiny_run(tiny_config(output, trackers="mlflow", num_server_rounds=3, resume=str(run)))
    store = (run / "mlflow").rename(tmp_path / "moved")
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'pluralllm-fl'")
    resumed, first = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in (resumed, first)} == {"FINISHED"}
    assert (first.data.params["num-server-rounds"], first.data.params["dataset"]) == (
        "2",
        "synthetic",
    )
    shown = {
        point.step: point.value
        for r in (first, resumed)
        for point in client.get_metric_history(r.info.run_id, "unseen/alignment")
    }
    assert shown == pytest.approx(logged(run))
    assert not list(elsewhere.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cwd", "moved", "é #1"]


@needs("wandb")
def test_wandb_runs_offline(tmp_path: Path, elsewhere: Path) -> None:
    run = tiny_run(tiny_config(tmp_path, trackers="wandb"))
    [file] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"seen_groups/Aland" in file.read_bytes()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_tracker_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=rf"pluralllm-fl\[{name}\]"):
        tiny_run(tiny_config(tmp_path, trackers=name))
