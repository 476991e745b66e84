"""The roster waits for nodes that work, and not for ever."""

import threading
import time
from pathlib import Path

import pytest
from flwr.app import Message

from pluralllm_fl.errors import FederationError
from pluralllm_fl.federation import roster
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    events,
    tiny_app,
    tiny_config,
    tiny_run,
)


def answering_after(seconds: float) -> InProcessGrid:
    """Return a grid whose nodes take so long to introduce themselves; below 0: for ever."""
    grid = InProcessGrid(tiny_app(), len(GROUPS))

    def fault(request: Message, reply: Message, _: int) -> Message | None:
        if request.metadata.message_type != "query":
            return reply
        if seconds >= 0:
            identifier = request.metadata.message_id
            threading.Timer(seconds, grid._replies.__setitem__, (identifier, reply)).start()
        return None

    grid.fault = fault
    return grid


def test_nodes_that_embed_for_longer_than_the_join_timeout_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roster, "NEWS_SECONDS", 0.2)
    config = tiny_config(tmp_path, join_timeout=0.2, round_timeout=20.0, num_server_rounds=1)
    with caplog.at_level("INFO", "flwr.pluralllm_fl"):
        run = tiny_run(config, grid=answering_after(1.0))
    assert len(events(run, "roster")[0]["nodes"]) == len(GROUPS)
    assert "0 node(s) joined, 5 still prepare their data" in caplog.text


def test_nodes_that_never_answer_end_the_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, join_timeout=0.2, round_timeout=1.0)
    start = time.monotonic()
    with pytest.raises(FederationError, match=r"5 node.* did not answer within round-timeout"):
        tiny_run(config, grid=answering_after(-1.0))
    assert 1.2 <= time.monotonic() - start < 10
