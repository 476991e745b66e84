"""Shared fixtures."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch: threads that wait actively for each other are four times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, as torch's below
import torch
from hypothesis import settings

# What the first example takes says how busy the machine is, nothing else.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
# The models here are tiny: threads would only wait for each other.
torch.set_num_threads(1)

TIERS = {"unit": "fast", "integration": "integration", "e2e": "e2e"}
# Minutes each: they are handed out first, lest a worker begins one when the other is done.
LONGEST = ("test_deployment", "test_simulation", "test_ray_cluster", "test_launcher")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the folder that they lie in; put the longest files first, in order."""
    for item in items:
        item.add_marker(TIERS[item.path.relative_to(Path(__file__).parent).parts[0]])
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run two files at a time, as half of the end-to-end tests is waiting; a test, or one file,
    does not pay for workers."""
    alone = len(config.args) == 1 and ("::" in config.args[0] or config.args[0].endswith(".py"))
    return 0 if alone else 2


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real survey data beside the repository; never part of it (other licences)."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "global_opinions" / "global_opinions.csv").is_file():
        pytest.skip(f"real survey data is absent ({folder.name}/ beside the repository)")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
