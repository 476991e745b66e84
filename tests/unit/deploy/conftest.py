"""A federation's folder, as deploy init writes it."""

import os
import shutil
from pathlib import Path

import pytest

from tests.unit.deploy.federation import HOSTS, SEEN, UNSEEN, init


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation in a folder with an awkward name, made under a permissive umask."""
    folder = tmp_path_factory.mktemp("deploy") / "it's 100% ü $x"
    before = os.umask(0)
    try:
        result = init(
            folder, "--unseen", ";".join(UNSEEN), "--years", "1",
            groups=";".join(SEEN), server=";".join(HOSTS),
        )  # fmt: skip
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.output
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return folder


@pytest.fixture
def federation(written: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return shutil.copytree(written, tmp_path / "copy")
