"""A bad node never sinks a run: retries and the end after them, restarts and signals."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Message

from pluralllm_fl.errors import FederationError
from pluralllm_fl.runs import checkpoint
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    events,
    final_arrays,
    tiny_app,
    tiny_config,
    tiny_run,
)
from tests.integration.spoiled import BAD, BAD_GROUP, failing


def test_retried_round_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    config = {"min_nodes": 4, "round_retries": 2}
    fault = failing(1, 2, (1, 2))
    disturbed = tiny_run(tiny_config(tmp_path / "a", **config), fault=fault)  # type: ignore[arg-type]
    retried = events(disturbed, "round_retried")
    assert [(e["round"], e["attempt"], e["good"], e["needed"]) for e in retried] == [
        (2, 1, 2, 4),
        (2, 2, 2, 4),
    ]
    undisturbed = tiny_run(tiny_config(tmp_path / "b", **config))
    assert final_arrays(disturbed) == final_arrays(undisturbed)


def test_too_few_replies_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, min_nodes=4, round_retries=1, checkpoint_every=100)
    with pytest.raises(FederationError, match=r"Round 2: only 3 good replies of 4") as caught:
        tiny_run(config, fault=failing(1, 99, (1,)))  # type: ignore[arg-type]
    assert f"{BAD_GROUP}: answers.csv is gone" in str(caught.value)
    run = tmp_path / "run"
    assert checkpoint.newest(run / "checkpoints").name == "round-0001"
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["completed_rounds"]) == ("failed", 1)
    assert record["error"] == str(caught.value)
    assert events(run)[-1]["status"] == "failed"
    assert not (run / "model").exists()
    assert not (run / "summary.json").exists()


def test_restarted_node_is_found_again_under_its_new_id(tmp_path: Path) -> None:
    grid = InProcessGrid(tiny_app(), len(GROUPS))

    def fault(request: Message, reply: Message, partition: int) -> Message:
        config = request.content.config_records.get("config", {})
        if partition == 0 and config.get("server-round") == 1 and not grid.offline:
            grid.leave(BAD)
            grid.join(BAD, {"partition-id": BAD, "num-partitions": len(GROUPS)})
        return reply

    grid.fault = fault
    run = tiny_run(tiny_config(tmp_path / "a"), grid=grid)
    assert grid.offline
    assert not events(run, "reply_dropped")
    assert final_arrays(run) == final_arrays(tiny_run(tiny_config(tmp_path / "b")))


def test_offline_node_is_dropped_at_once(tmp_path: Path) -> None:
    grid = InProcessGrid(tiny_app(), len(GROUPS))

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if request.metadata.message_type == "train" and partition == 2:
            grid.leave(BAD)
        return reply

    grid.fault = fault
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=2), grid=grid)
    reasons = {e["reason"] for e in events(run, "reply_dropped")}
    assert reasons == {"the node is offline"}
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def test_unfinished_round_is_not_completed(tmp_path: Path) -> None:
    """A round whose evaluation was cut off will be repeated by a resume."""

    def fault(request: Message, reply: Message, _: int) -> Message:
        config = request.content.config_records.get("config", {})
        if request.metadata.message_type == "evaluate" and config["server-round"] == 4:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tiny_config(tmp_path, checkpoint_every=100), fault=fault)
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["completed_rounds"] == 3
    assert checkpoint.newest(run / "checkpoints").name == "round-0003"
    resumed = tiny_run(tiny_config(tmp_path, resume=str(run)))
    assert events(resumed, "run_started")[-1]["first_round"] == 4


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3)])
def test_interruption_is_recorded_and_passed_on(tmp_path: Path, stop: BaseException) -> None:
    def fault(request: Message, reply: Message, _: int) -> Message:
        config = request.content.config_records.get("config", {})
        if request.metadata.message_type == "train" and config["server-round"] == 3:
            raise stop
        return reply

    with pytest.raises(type(stop)):
        tiny_run(tiny_config(tmp_path), fault=fault)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["completed_rounds"]) == ("interrupted", 2)
    assert "resume" in record["error"]
    assert events(run)[-1]["status"] == "interrupted"


_SERVER = """
import os, signal, sys, threading, time
from pathlib import Path
from tests.integration.inprocess import tiny_config, tiny_run

def fault(request, reply, partition):
    config = request.content.config_records.get("config", {})
    if request.metadata.message_type == "train" and config["server-round"] == 3:
        if sys.argv[2] == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        ready.set()
        return None
    return reply

ready = threading.Event()
config = tiny_config(Path(sys.argv[1]), round_timeout=60.0, checkpoint_every=2)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
# As in Flower's simulation: the ServerApp runs beside the main thread.
threading.Thread(target=tiny_run, args=(config,), kwargs={"fault": fault}).start()
ready.wait()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize(("sign", "status"), [("TERM", "interrupted"), ("KILL", "running")])
def test_signals_leave_a_run_that_resumes_to_the_same_model(
    tmp_path: Path, sign: str, status: str
) -> None:
    subprocess.run(
        [sys.executable, "-c", _SERVER, str(tmp_path / "cut"), sign],
        cwd=Path(__file__).parents[2],
        timeout=60,
        capture_output=True,
    )
    run = tmp_path / "cut" / "run"
    assert json.loads((run / "run.json").read_text())["status"] == status
    tiny_run(tiny_config(tmp_path / "cut", resume=str(run), checkpoint_every=2))
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert final_arrays(run) == final_arrays(tiny_run(tiny_config(tmp_path / "whole")))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("fingerprint", "other", "its data changed"), ("embedding", "other", "its language model")],
)
def test_restarted_node_with_other_data_or_model_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: str, reason: str
) -> None:
    grid = InProcessGrid(tiny_app(), len(GROUPS))

    def fault(request: Message, reply: Message, partition: int) -> Message:
        config = request.content.config_records.get("config", {})
        if grid.offline and partition == BAD and request.metadata.message_type == "query":
            reply.content["roster"][key] = value
        if partition == 0 and config.get("server-round") == 1 and not grid.offline:
            grid.leave(BAD)
            grid.join(BAD, {"partition-id": BAD, "num-partitions": len(GROUPS)})
        return reply

    grid.fault = fault
    with caplog.at_level(logging.WARNING, logger="flwr.pluralllm_fl"):
        run = tiny_run(tiny_config(tmp_path, num_server_rounds=3, round_retries=0), grid=grid)
    assert f"cannot take part: {reason}" in caplog.text
    assert BAD_GROUP not in events(run, "round")[-1]["by_group"]
