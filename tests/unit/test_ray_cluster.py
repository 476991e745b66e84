"""The variables with which Ray is closed to others, and left as it is where a cluster is named."""

from pathlib import Path

import pytest

from pluralllm_fl.processes import launcher
from pluralllm_fl.processes.ray_cluster import ray_environment


@pytest.mark.parametrize("address", [None, "", "local"])
def test_a_ray_of_our_own_has_a_fresh_token(
    address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "known to others")
    runs = [launcher._environment("bin", tmp_path, 1) for _ in range(2)]
    tokens = {run["RAY_AUTH_TOKEN"] for run in runs}
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)
    assert {run["RAY_AUTH_MODE"] for run in runs} == {"token"}
    assert {run["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] for run in runs} == {"0"}


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "theirs"}])
def test_a_named_cluster_keeps_its_own_token(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = launcher._environment("bin", tmp_path, 1)
    assert {k: v for k, v in found.items() if k.startswith("RAY_AUTH")} == given
    assert not any(name.startswith("RAY_AUTH") for name in ray_environment(tmp_path, {}))
