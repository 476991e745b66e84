"""The language model of most tests here."""

from pathlib import Path

import pytest

from tests.unit.embedding.language_models import build_model


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("causal"), "causal")
