"""Experiment trackers write into the run directory; a missing one names its extra."""

import importlib.util
from pathlib import Path

import pytest

from pluralllm_fl.errors import ConfigError
from tests.integration.inprocess import events, tiny_config, tiny_run

pytestmark = pytest.mark.integration


def test_tensorboard_holds_the_numbers_of_the_event_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_run(tiny_config(tmp_path, trackers="tensorboard"))
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {point.step: point.value for point in board.Scalars("unseen/alignment")}
    logged = {e["round"]: e["unseen"]["alignment"] for e in events(run, "evaluation")}
    assert shown == pytest.approx(logged)
    assert "seen_groups/Aland" in board.Tags()["scalars"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_tracker_works_without_login_or_names_its_extra(tmp_path: Path, name: str) -> None:
    config = tiny_config(tmp_path, trackers=name)
    if importlib.util.find_spec(name) is None:
        with pytest.raises(ConfigError, match=rf"pluralllm-fl\[{name}\]"):
            tiny_run(config)
    else:
        assert (tiny_run(config) / name).is_dir()
