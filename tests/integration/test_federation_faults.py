"""A bad node never sinks a run: every kind of bad reply, retries and the end after them."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from pluralllm_fl.errors import FederationError
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.wire.messages import SCORE_KEYS
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    events,
    final_arrays,
    tiny_app,
    tiny_config,
    tiny_run,
)

# Partition 1 holds "Drusselstein", which trains.
BAD, BAD_GROUP = 1, "Drusselstein"


def _set_array(reply: Message, value: np.ndarray) -> Message:
    reply.content["arrays"]["weight"] = Array(value)
    return reply


def _nan(reply: Message) -> Message:
    return _set_array(reply, np.array([0, np.nan, 0], dtype=np.float32))


def _huge(reply: Message) -> Message:
    return _set_array(reply, np.full(3, 1e30, dtype=np.float32))


def _long(reply: Message) -> Message:
    """Go far, but not beyond max-update-norm."""
    return _set_array(reply, np.full(3, 14, dtype=np.float32))


def _shape(reply: Message) -> Message:
    return _set_array(reply, np.zeros((3, 1), dtype=np.float32))


def _dtype(reply: Message) -> Message:
    return _set_array(reply, np.zeros(3, dtype=np.float64))


def _bytes(reply: Message) -> Message:
    reply.content["arrays"]["weight"] = Array("float32", (3,), "numpy.ndarray", b"not an array")
    return reply


def _pickle(reply: Message) -> Message:

    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    reply.content["arrays"]["weight"] = Array("object", (1,), "numpy.ndarray", file.getvalue())
    return reply


def _key(reply: Message) -> Message:
    arrays = reply.content["arrays"]
    reply.content["arrays"] = ArrayRecord({f"{k}.x": v for k, v in arrays.items()})
    return reply


def _record(reply: Message) -> Message:
    reply.content = RecordDict(
        {"parameters": reply.content["arrays"], "metrics": reply.content["metrics"]}
    )
    return reply


def _two_records(reply: Message) -> Message:
    reply.content["more"] = ArrayRecord({"weight": Array(np.zeros(3, dtype=np.float32))})
    return reply


def _no_metrics(reply: Message) -> Message:
    reply.content = RecordDict({"arrays": reply.content["arrays"], "config": ConfigRecord()})
    return reply


def _metric(key: str, value: float | list[float] | None) -> Callable[[Message], Message]:
    def spoil(reply: Message) -> Message:
        metrics = dict(reply.content["metrics"].items())
        if value is None:
            del metrics[key]
        else:
            metrics[key] = value
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    return spoil


def _error(reply: Message) -> Message:
    request_like = reply  # a reply's metadata answers the same request
    error = Message(
        Error(2, "<class 'pluralllm_fl.errors.DatasetError'>:<'answers.csv is gone'>"),
        reply_to=request_like,
    )
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error


TRAIN_FAULTS: dict[str, tuple[Callable[[Message], Message | None], str]] = {
    "error": (_error, "answers.csv is gone"),
    "lost": (lambda _: None, "round-timeout"),
    "nan": (_nan, "NaN"),
    "huge": (_huge, "max-update-norm"),
    "shape": (_shape, "shape (3, 1)"),
    "dtype": (_dtype, "float64"),
    "undecodable": (_bytes, "cannot be decoded"),
    "pickle": (_pickle, "cannot be decoded"),
    "key": (_key, "names differ"),
    "record name": (_record, "parameters"),
    "two records": (_two_records, "more"),
    "no metrics": (_no_metrics, "metric records"),
    "zero weight": (_metric("num-examples", 0.0), "num-examples = 0"),
    "negative weight": (_metric("num-examples", -5.0), "num-examples"),
    "another weight than told": (_metric("num-examples", 13.0), "instead of the 12 that the node"),
    "another count than told": (_metric("questions", 13), "questions = 13 instead of the 12"),
    "long": (_long, "max-update-ratio = 5 times"),
    "absurd weight": (_metric("num-examples", 1e30), "num-examples"),
    "NaN weight": (_metric("num-examples", float("nan")), "num-examples"),
    "list weight": (_metric("num-examples", [1.0]), "num-examples"),
    "infinite loss": (_metric("train-loss", float("inf")), "train-loss"),
    "absurd loss": (_metric("train-loss", -1e308), "train-loss"),
    "list loss": (_metric("train-loss", [1.0]), "train-loss"),
    "missing loss": (_metric("train-loss", None), "train-loss"),
    "extra metric": (_metric("surprise", 1.0), "surprise"),
    "missing metric": (_metric("seconds", None), "seconds"),
}


@pytest.fixture(scope="module")
def without_bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The model of two rounds of the others alone: the bad node's replies are lost."""
    others = InProcessGrid(
        tiny_app(), len(GROUPS), fault=lambda q, r, p: None
        if (q.metadata.message_type, p) == ("train", BAD) else r
    )  # fmt: skip
    config = tiny_config(tmp_path_factory.mktemp("others"), num_server_rounds=2, round_timeout=1.0)
    return final_arrays(tiny_run(config, grid=others))


@pytest.mark.parametrize("kind", TRAIN_FAULTS)
def test_bad_training_reply_is_dropped_and_named(
    tmp_path: Path, without_bad: dict[str, bytes], kind: str
) -> None:
    spoil, reason = TRAIN_FAULTS[kind]

    def fault(request: Message, reply: Message, partition: int) -> Message | None:
        bad = request.metadata.message_type == "train" and partition == BAD
        return spoil(reply) if bad else reply

    # Only a lost reply is waited for.
    patience = 1.0 if kind == "lost" else 30.0
    config = tiny_config(tmp_path, num_server_rounds=2, round_timeout=patience)
    run = tiny_run(config, fault=fault)
    dropped = events(run, "reply_dropped")
    assert [(e["round"], e["phase"], e["group"]) for e in dropped] == [
        (1, "train", BAD_GROUP),
        (2, "train", BAD_GROUP),
    ]
    assert reason in dropped[0]["reason"]
    assert BAD_GROUP not in events(run, "round")[0]["by_group"]
    assert final_arrays(run) == without_bad


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_error, "answers.csv is gone"),
        (_metric("all-alignment", float("nan")), "all-alignment"),
        (_metric("all-alignment", 1.5), "all-alignment = 1.5"),
        (_metric("all-alignment", 0.0), "all-alignment = 0 "),
        (_metric("all-alignment", -0.1), "all-alignment = -0.1"),
        (_metric("test-alignment", 0.0), "test-alignment = 0 "),
        (_metric("all-uniform", 0.0), "all-uniform = 0 "),
        (_metric("all-alignment-offered", 7.0), "all-alignment-offered = 7 "),
        (_metric("all-uniform", 7.0), "all-uniform = 7 "),
        (_metric("all-low", -0.5), "all-low = -0.5"),
        (_metric("all-high", 1.5), "high = 1.5 are no interval"),
        (_metric("all-high", 0.01), "high = 0.01 are no interval"),
        (_metric("all-low", [0.5]), "all-low is a list"),
        (_metric("validation-questions", 0.5), "validation-questions = 0.5"),
        (_metric("test-questions", -1), "test-questions = -1"),
        (_metric("train-questions", 1e300), "train-questions = 1e+300"),
        (_metric("test-low", None), "test-low"),
        (_metric("surprise", 1.0), "surprise"),
        (_metric("num-examples", 0.0), "num-examples"),
    ],
)
def test_bad_evaluation_reply_is_dropped(
    tmp_path: Path, spoil: Callable[[Message], Message], reason: str
) -> None:
    def fault(request: Message, reply: Message, partition: int) -> Message:
        bad = request.metadata.message_type == "evaluate" and partition == BAD
        return spoil(reply) if bad else reply

    run = tiny_run(tiny_config(tmp_path, num_server_rounds=2), fault=fault)
    dropped = events(run, "reply_dropped")
    assert {(e["phase"], e["group"]) for e in dropped} == {("evaluate", BAD_GROUP)}
    assert reason in dropped[0]["reason"]
    last = events(run, "evaluation")[-1]
    assert BAD_GROUP not in last["seen"]["by_group"]
    assert len(last["seen"]["by_group"]) == 3


def test_unusual_but_possible_scores_are_taken(tmp_path: Path) -> None:
    """Splits without questions, and a bootstrap interval that its own mean lies outside of."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if request.metadata.message_type == "evaluate" and partition == BAD:
            metrics = reply.content["metrics"]
            for key in SCORE_KEYS:
                metrics[f"test-{key}"] = 0.0
            metrics["all-low"] = metrics["all-high"] = float(metrics["all-alignment"]) + 1e-3
            metrics["train-alignment"] = metrics["train-high"] = 1 + 1e-9
        return reply

    run = tiny_run(tiny_config(tmp_path, num_server_rounds=1), fault=fault)
    assert not events(run, "reply_dropped")
    block = events(run, "evaluation")[-1]["seen"]
    assert len(block["by_group"]) == 4
    assert sorted(block["test_questions"]["by_group"]) == ["Aland", "Borduria", "Cascadia"]


def _failing(first: int, last: int, partitions: tuple[int, ...], server_round: int = 2) -> object:
    """Error replies of partitions for the first..last request of one round."""
    seen: dict[int, int] = {}

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if request.metadata.message_type != "train" or partition not in partitions:
            return reply
        if request.content["config"]["server-round"] != server_round:
            return reply
        seen[partition] = seen.get(partition, 0) + 1
        return _error(reply) if first <= seen[partition] <= last else reply

    return fault


def test_retried_round_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    config = {"min_nodes": 4, "round_retries": 2}
    fault = _failing(1, 2, (1, 2))
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
        tiny_run(config, fault=_failing(1, 99, (1,)))  # type: ignore[arg-type]
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


def test_strategy_that_raises_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_strategies.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Broken(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        raise ZeroDivisionError('nothing to divide')\n"
        "class Lazy(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        return None, None\n"
        "class Greedy(FedAvg):\n"
        "    def configure_train(self, server_round, arrays, config, grid):\n"
        "        self.min_available_nodes = 99\n"
        "        return super().configure_train(server_round, arrays, config, grid)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    for name, words in {
        "Broken": "aggregate_train of round 1: ZeroDivisionError: nothing to divide",
        "Lazy": "never aggregated",
        "Greedy": "waits for more nodes",
    }.items():
        config = tiny_config(tmp_path / name, strategy=f"broken_strategies:{name}")
        with pytest.raises(FederationError, match=words):
            tiny_run(config)


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


def test_a_node_that_spoils_the_aggregate_is_found_and_left_out(tmp_path: Path) -> None:
    """q-FedAvg raises losses to a power: a negative one makes NaN, though the reply looks good."""

    def negative(request: Message, reply: Message, partition: int) -> Message | None:
        if request.metadata.message_type == "train" and partition == BAD:
            reply.content["metrics"]["train-loss"] = -0.5
        return reply

    run = tiny_run(tiny_config(tmp_path / "a", strategy="qfedavg"), fault=negative)
    assert [(e["round"], e["group"]) for e in events(run, "reply_dropped")] == [
        (number, BAD_GROUP) for number in (1, 2, 3, 4)
    ]
    assert "NaN" in events(run, "reply_dropped")[0]["reason"]
    others = tiny_run(
        tiny_config(tmp_path / "b", strategy="qfedavg"),
        fault=lambda q, r, p: None if (q.metadata.message_type, p) == ("train", BAD) else r,
    )
    assert final_arrays(run) == final_arrays(others)


def test_momentum_forgets_what_overflowed(tmp_path: Path) -> None:
    """Nothing limits the norm here, and ten times this step is beyond float32."""

    def huge(request: Message, reply: Message, partition: int) -> Message:
        config = request.content.config_records.get("config", {})
        if reply.content.array_records and partition == BAD and config["server-round"] == 2:
            _set_array(reply, np.full(3, 3e38, dtype=np.float32))
        return reply

    changes = {
        "max_update_norm": 0.0, "max_update_ratio": 0.0, "strategy": "fedavgm",
        "strategy_args": '{"server_momentum": 0.5, "server_learning_rate": 10.0}',
    }  # fmt: skip
    run = tiny_run(tiny_config(tmp_path / "a", **changes), fault=huge)
    (dropped,) = events(run, "reply_dropped")
    assert (dropped["round"], dropped["group"]) == (2, BAD_GROUP)
    lost = _failing(1, 1, (BAD,))
    others = tiny_run(tiny_config(tmp_path / "b", **changes), fault=lost)  # type: ignore[arg-type]
    assert final_arrays(run) == final_arrays(others)


def test_a_strategy_that_is_never_finite_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text(
        "import numpy as np\n"
        "from flwr.app import Array, ArrayRecord\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Endless(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        arrays, metrics = super().aggregate_train(server_round, replies)\n"
        "        spoilt = {k: Array(np.full(v.shape, np.inf)) for k, v in arrays.items()}\n"
        "        return ArrayRecord(spoilt), metrics\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FederationError, match=r"Round 1: .*NaN or infinite.*Try gentler"):
        tiny_run(tiny_config(tmp_path / "run", strategy="endless:Endless"))
