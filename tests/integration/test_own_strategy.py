"""The example of docs/strategies.md: it does what it says, and runs on the default model."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from client_app import app
from pluralllm_fl import strategies
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.wire.records import to_arrays, to_record
from tests.integration.bad_nodes import ATTACKS, with_bad_nodes
from tests.integration.inprocess import InProcessGrid, events, federate, final_arrays, real_config

pytest.importorskip(PACKAGED, reason="the default language model's package is not installed")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAME = "own_strategy:ClippedMean"
NODES, BAD = 6, 1  # five train


@pytest.fixture(autouse=True)
def _in_the_examples_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def trained(output: Path, strategy: str, *, liar: bool = False, **arguments: float) -> Path:
    config = real_config(
        output, synthetic_groups=NODES, synthetic_questions=40, unseen_fraction=0.17,
        strategy=strategy, strategy_args=json.dumps(arguments), evaluate_every=2,
        num_server_rounds=2, max_update_ratio=0.0,
    )  # fmt: skip
    nodes = with_bad_nodes(app, {BAD}, ATTACKS["sign flip x10"]) if liar else app
    return federate(config, nodes)


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("fedavg"), "fedavg")


def alignment(run: Path) -> list[float]:
    return [event["unseen"]["alignment"] for event in events(run, "evaluation")]


def test_long_updates_are_shortened_to_the_median() -> None:
    """Lengths 1, 2 and 50 around (1, 1): the last is cut to 2."""
    strategy = strategies.build(NAME, {}, train_nodes=3, all_nodes=3)
    model = np.ones(2, dtype=np.float32)
    moves: list[NDArray[np.float32]] = [
        np.array(move, dtype=np.float32) for move in ([1, 0], [0, 2], [-30, 40])
    ]
    InProcessGrid(app, 0)  # sets what messages need
    vars(strategy)["sent"] = {"weight": model}
    replies = []
    for rank, move in enumerate(moves, 1):
        content = RecordDict({"config": ConfigRecord()})
        question = Message(content, dst_node_id=rank, message_type=MessageType.TRAIN)
        metrics = MetricRecord({"num-examples": 1.0, "train-loss": 1.0})
        answer = RecordDict({"arrays": to_record({"weight": model + move}), "metrics": metrics})
        replies.append(Message(answer, reply_to=question))
    record, _ = strategy.aggregate_train(1, replies)
    assert record is not None
    expected = model + (moves[0] + moves[1] + 2 * moves[2] / 50) / 3
    np.testing.assert_allclose(to_arrays(record)["weight"], expected, rtol=1e-6)


def test_it_learns_where_fedavg_is_destroyed(tmp_path: Path, fedavg: Path) -> None:
    """One node of five sends its update ten times as long and backwards, without our checks.

    The liar's pull is cut to the usual length, not left out: it slows the others down.
    """
    untrained, honest = alignment(fedavg)
    destroyed = alignment(trained(tmp_path / "fedavg", "fedavg", liar=True))[-1]
    run = trained(tmp_path / "own", NAME, liar=True, times=1.0)
    assert destroyed < untrained - 0.1
    assert untrained < alignment(run)[-1] < honest
    assert json.loads((run / "summary.json").read_text())["warnings"] == []


def test_without_a_limit_it_is_fedavg(tmp_path: Path, fedavg: Path) -> None:
    own = final_arrays(trained(tmp_path / "own", NAME, times=1e9))
    stock = final_arrays(fedavg)
    for name, value in stock.items():
        expected = np.frombuffer(value, dtype=np.float32)
        found = np.frombuffer(own[name], dtype=np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
