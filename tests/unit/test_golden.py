"""Artefacts that this version wrote: later ones load them, or refuse them in words."""

import json
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.wire.messages import ARRAYS, METRICS
from pluralllm_fl.wire.packing import unpacked
from pluralllm_fl.wire.records import to_arrays
from tests import golden


@pytest.fixture(scope="module")
def stored() -> Any:
    return json.loads((golden.FOLDER / "golden.json").read_text(encoding="utf-8"))


def test_the_model_loads_and_predicts_the_same(stored: Any) -> None:
    predictor = PreferencePredictor.from_pretrained(golden.FOLDER / "model")
    assert golden.prediction(predictor) == pytest.approx(stored["prediction"], abs=1e-5)


def test_a_models_config_of_another_version_is_refused_in_words(tmp_path: Any) -> None:
    config = json.loads((golden.FOLDER / "model" / "config.json").read_text())
    del config["factors"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (golden.FOLDER / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtefactError, match="factors missing, as in models of an earlier version"):
        PreferencePredictor.from_pretrained(tmp_path)


def test_the_run_config_is_read_or_its_keys_are_named(stored: Any) -> None:
    recorded = stored["run_config"]
    now = RunConfig.default().to_run_config()
    if recorded.keys() == now.keys():
        assert RunConfig.from_run_config(recorded).to_run_config() == recorded
    else:
        with pytest.raises(ConfigError, match=r"Unknown config key|Missing config keys"):
            RunConfig.from_run_config(recorded)


def test_the_packed_reply_is_read(stored: Any) -> None:
    content = unpacked(golden.rebuilt(stored["reply"]))
    found = to_arrays(content.array_records[ARRAYS])
    assert list(found) == list(golden.ARRAYS)
    for name, value in golden.ARRAYS.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert stored["reply"][METRICS] == dict(golden.REPORT.record())
