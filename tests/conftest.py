"""Shared fixtures."""

from pathlib import Path

import pytest
import torch

# The models here are tiny: threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real survey data beside the repository; never part of it (other licences)."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "global_opinions" / "global_opinions.csv").is_file():
        pytest.skip(f"real survey data is absent ({folder.name}/ beside the repository)")
    return folder
