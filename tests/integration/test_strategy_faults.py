"""Strategies that raise or never end, and aggregates that a node spoils."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from pluralllm_fl.errors import FederationError
from tests.integration.inprocess import events, final_arrays, tiny_config, tiny_run
from tests.integration.spoiled import BAD, BAD_GROUP, failing, set_array


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
            set_array(reply, np.full(3, 3e38, dtype=np.float32))
        return reply

    changes = {
        "max_update_norm": 0.0, "max_update_ratio": 0.0, "strategy": "fedavgm",
        "strategy_args": '{"server_momentum": 0.5, "server_learning_rate": 10.0}',
    }  # fmt: skip
    run = tiny_run(tiny_config(tmp_path / "a", **changes), fault=huge)
    (dropped,) = events(run, "reply_dropped")
    assert (dropped["round"], dropped["group"]) == (2, BAD_GROUP)
    lost = failing(1, 1, (BAD,))
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
