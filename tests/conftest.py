"""Shared fixtures."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real survey data beside the repository; never part of it (other licences)."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "global_opinions" / "global_opinions.csv").is_file():
        pytest.skip(f"real survey data is absent ({folder.name}/ beside the repository)")
    return folder
