"""A node's folder, as the operator hands it over."""

from pathlib import Path

import pytest

from pluralllm_fl.deploy.layout import create
from tests import tls
from tests.tls import Signed


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return a node's folder, as the operator hands it over."""
    create(tmp_path / "fed", seen="Northland", unseen="", servers="localhost", port=8443, years=1)
    return tmp_path / "fed" / "nodes" / "northland"


@pytest.fixture(scope="module")
def ca() -> Signed:
    return tls.authority()
