"""A bad node never sinks a run: every kind of bad reply is dropped and named."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

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
from tests.integration.spoiled import BAD, BAD_GROUP, error_reply, set_array


def _nan(reply: Message) -> Message:
    return set_array(reply, np.array([0, np.nan, 0], dtype=np.float32))


def _huge(reply: Message) -> Message:
    return set_array(reply, np.full(3, 1e30, dtype=np.float32))


def _long(reply: Message) -> Message:
    """Go far, but not beyond max-update-norm."""
    return set_array(reply, np.full(3, 14, dtype=np.float32))


def _shape(reply: Message) -> Message:
    return set_array(reply, np.zeros((3, 1), dtype=np.float32))


def _dtype(reply: Message) -> Message:
    return set_array(reply, np.zeros(3, dtype=np.float64))


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


TRAIN_FAULTS: dict[str, tuple[Callable[[Message], Message | None], str]] = {
    "error": (error_reply, "answers.csv is gone"),
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
        (error_reply, "answers.csv is gone"),
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
