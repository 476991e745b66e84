"""Federations whose updates travel as bfloat16 or int8: results, bytes, repeats and bad replies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, UserConfig

from client_app import app
from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError, FederationError
from pluralllm_fl.federation.node import LocalNode
from pluralllm_fl.federation.session import run_federation
from pluralllm_fl.predictor import PredictorConfig, PreferencePredictor
from pluralllm_fl.training import learning_rate_at
from pluralllm_fl.workspace import open_workspace
from tests.integration.inprocess import Fault, InProcessGrid, events, final_arrays
from tests.integration.test_federation_resume import CrashError
from tests.integration.test_node import context

pytestmark = pytest.mark.integration
pytest.importorskip(PACKAGED, reason="the extra 'offline' is not installed")

NODES = 4
# Partition 1 trains.
BAD = 1


def settings(output: Path, **changes: bool | float | int | str) -> RunConfig:
    values = {
        **default_run_config(),
        "synthetic-groups": NODES, "synthetic-questions": 60, "unseen-fraction": 0.25,
        "prototypes": 2, "coverage-features": 32,
        "num-server-rounds": 3, "local-steps": 8, "learning-rate": 4e-3,
        "join-timeout": 20.0, "round-timeout": 20.0, "device": "cpu",
        "output-dir": str(output), "run-name": "run",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }  # fmt: skip
    return RunConfig.from_run_config(values)


def federate(
    config: RunConfig, fault: Fault | None = None, nodes: list[UserConfig] | None = None
) -> Path:
    """Run the real nodes and the real predictor, in this process."""
    grid = InProcessGrid(
        app,
        len(nodes) if nodes else NODES,
        config.to_run_config(),
        node_configs=nodes,
        fault=fault,
    )
    return run_on(grid, config)


def run_on(grid: InProcessGrid, config: RunConfig) -> Path:
    def build(embedding_dim: int, embedding_fingerprint: str) -> PreferencePredictor:
        torch.manual_seed(config.seed)
        return PreferencePredictor(
            PredictorConfig.from_run_config(config, embedding_dim, embedding_fingerprint)
        )

    return run_federation(grid, config, build, learning_rate_at)


def trains(request: Message, server_round: int, partition: int | None = None) -> bool:
    if request.metadata.message_type != "train":
        return False
    return request.content["config"]["server-round"] == server_round and partition in (BAD, None)


def test_alignment_is_that_of_float32_for_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    runs = {
        dtype: federate(settings(tmp_path / dtype, update_dtype=dtype, num_server_rounds=5))
        for dtype in ("float32", "bfloat16", "int8")
    }
    summaries = {k: json.loads((run / "summary.json").read_text()) for k, run in runs.items()}
    gained = (
        summaries["float32"]["unseen"]["alignment"]
        - (events(runs["float32"], "evaluation")[0]["unseen"]["alignment"])
    )
    assert gained > 0.02
    up = {k: [e["bytes_up"] for e in events(run, "round")] for k, run in runs.items()}
    for dtype, ratio in (("bfloat16", 0.5), ("int8", 0.25)):
        for side in ("seen", "unseen"):
            whole, small = (summaries[k][side]["alignment"] for k in ("float32", dtype))
            assert small == pytest.approx(whole, abs=gained / 10)
        assert not events(runs[dtype], "reply_dropped")
        assert len(set(up[dtype])) == 1
        assert up[dtype][0] / up["float32"][0] == pytest.approx(ratio, abs=0.02)
    whole, small = (
        np.frombuffer(final_arrays(runs[dtype])["network.memory"], np.float32).reshape(2, -1)
        for dtype in ("float32", "int8")
    )
    # Two groups pull prototype 0 in every round; that of one group alone moves less and less.
    for prototype, quanta in ((0, 1.0), (1, 1e-3)):
        largest = np.abs(whole[prototype]).max()
        np.testing.assert_allclose(
            small[prototype], whole[prototype], atol=quanta * largest / 127, rtol=0
        )
    down = {events(run, "round")[0]["bytes_down"] for run in runs.values()}
    assert max(down) - min(down) < 100  # the model itself goes down whole
    assert (runs["int8"] / "nodes").is_dir()
    assert not any((runs[k] / "nodes").exists() for k in ("float32", "bfloat16"))


def test_repeated_round_and_restarted_nodes_send_the_same_bits(tmp_path: Path) -> None:
    config = {"update_dtype": "int8", "min_nodes": 3}
    whole = federate(settings(tmp_path / "whole", **config))
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

    again = settings(tmp_path / "again", round_timeout=1.0, **config)
    grid = InProcessGrid(app, NODES, again.to_run_config(), fault=lose_once)
    run = run_on(grid, again)
    assert events(run, "round_retried")
    assert final_arrays(run) == final_arrays(whole)


@pytest.mark.parametrize("checkpoint_every", [1, 2])
def test_resumed_run_is_bit_identical(tmp_path: Path, checkpoint_every: int) -> None:
    """The server dies in round 4, after the nodes trained it; it resumes after 3, or 2."""

    def crash(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 4) and partition == 2:
            raise CrashError
        return reply

    config = {
        "update_dtype": "int8",
        "num_server_rounds": 5,
        "local_steps": 3,
        "checkpoint_every": checkpoint_every,
    }
    whole = federate(settings(tmp_path / "whole", **config))
    with pytest.raises(CrashError):
        federate(settings(tmp_path / "cut", **config), crash)
    run = tmp_path / "cut" / "run"
    if checkpoint_every == 2:
        shutil.rmtree(run / "checkpoints" / "round-0003")  # written on the way out
    shutil.copytree(run, tmp_path / "copy")
    federate(settings(tmp_path / "cut", resume=str(run), **config))
    assert final_arrays(run) == final_arrays(whole)
    # The residuals lie with the run and matter: without them other bits come out.
    copy = tmp_path / "copy"
    shutil.rmtree(copy / "nodes")
    federate(settings(tmp_path / "cut", resume=str(copy), **config))
    assert final_arrays(copy) != final_arrays(whole)


def test_update_dtype_is_kept_on_resume(tmp_path: Path) -> None:
    run = federate(settings(tmp_path, num_server_rounds=1, local_steps=1))
    with pytest.raises(ConfigError, match="update-dtype"):
        federate(settings(tmp_path, resume=str(run), update_dtype="int8", num_server_rounds=2))


# -- deployed nodes: state in their own folder


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
    return [
        {
            "dataset-path": str(folder / f"{name}.jsonl"),
            "group": name,
            "state-dir": str(folder / f"{name}-state"),
        }
        for name in names
    ]


def test_deployed_nodes_keep_their_state_in_their_own_folder(tmp_path: Path) -> None:
    config = {"update_dtype": "int8", "local_steps": 2, "expected_nodes": 2}
    nodes = deployment(tmp_path / "a")
    run = federate(settings(tmp_path / "x", **config), nodes=nodes)
    assert not (run / "nodes").exists()
    for node in nodes:
        found = sorted(p.name for p in Path(str(node["state-dir"])).rglob("*.safetensors"))
        assert found == [f"residual-000{i}.safetensors" for i in (1, 2, 3)]
    # A new run of the same name begins without the residuals of the old one.
    second = federate(settings(tmp_path / "y", **config), nodes=nodes)
    assert final_arrays(second) == final_arrays(run)
    assert len(list(Path(str(nodes[0]["state-dir"])).iterdir())) == 2


def test_full_disk_of_a_node_is_told_to_the_server(tmp_path: Path, small_disk: Path) -> None:
    nodes = deployment(tmp_path / "a", ("Peru", "Chad", "Oman"))
    nodes[0]["state-dir"] = str(small_disk)
    config = settings(
        tmp_path / "x", update_dtype="int8", local_steps=1, expected_nodes=3, width=64,
        num_server_rounds=2,
    )  # fmt: skip
    run = federate(config, nodes=nodes)
    dropped = events(run, "reply_dropped")
    assert {e["group"] for e in dropped} == {"Peru"}
    assert "No space left on device" in dropped[0]["reason"]
    assert "state-dir" in dropped[0]["reason"]


def test_state_dir_must_be_absolute(tmp_path: Path) -> None:
    (own,) = deployment(tmp_path / "a", ("Peru",))
    with pytest.raises(ConfigError, match=r"state-dir = 'state'.*absolute"):
        LocalNode.from_context(context({**own, "state-dir": "state"}))


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"update-dtype": "int4"}, "int4"),
        ({"update-dtype": "int8"}, "lacks 'run'"),
        ({"update-dtype": "int8", "run": "../up", "run-id": "x"}, "lacks 'run'"),
        ({"update-dtype": "int8", "run": "up", "run-id": ".."}, "lacks 'run-id'"),
    ],
)
def test_odd_orders_are_refused(tmp_path: Path, orders: dict[str, Any], message: str) -> None:
    (own,) = deployment(tmp_path / "a", ("Peru",))
    node = LocalNode.from_context(context(own))
    config = PredictorConfig.from_run_config(node.config, node.workspace.vectors.shape[1])
    arrays = ArrayRecord(PreferencePredictor(config).state_dict())
    usual = {"server-round": 1, "learning-rate": 1e-3, "local-steps": 1, "seed": 0}
    with pytest.raises(ConfigError, match=message):
        node.train(arrays, usual | orders)


# -- hostile nodes


def _array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ArrayRecord], None]:
    def spoil(record: ArrayRecord) -> None:
        record[name] = Array(change(record[name].numpy().copy()))

    return spoil


def _with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[0] = value
        return array

    return change


def _claim(shape: str) -> Callable[[ArrayRecord], None]:
    """A few bytes that claim to be a huge array."""

    def spoil(record: ArrayRecord) -> None:
        text = f"{{'descr': '|i1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
        record["update/int8"] = Array("int8", (1,), "numpy.ndarray", data)

    return spoil


def _whole(record: ArrayRecord) -> None:
    record.clear()
    record["network.log_evidence"] = Array(np.zeros((), np.float32))


def _drop_scales(record: ArrayRecord) -> None:
    del record["update/scales"]


def _extra(record: ArrayRecord) -> None:
    record["more"] = Array(np.zeros(3, np.float32))


def _bytes(record: ArrayRecord) -> None:
    record["update/int8"] = Array("int8", (1,), "numpy.ndarray", b"nothing")


def _truncated(record: ArrayRecord) -> None:
    old = record["update/int8"]
    record["update/int8"] = Array(old.dtype, old.shape, old.stype, old.data[:-1])


def _newer_format(record: ArrayRecord) -> None:
    old = record["update/int8"]
    data = b"\x93NUMPY\x02" + old.data[7:]
    record["update/int8"] = Array(old.dtype, old.shape, old.stype, data)


HOSTILE: dict[str, tuple[Callable[[ArrayRecord], None], str]] = {
    "NaN scale": (_array("update/scales", _with(np.nan)), "scales holds NaN"),
    "infinite scale": (_array("update/scales", _with(np.inf)), "scales holds NaN"),
    "overflow": (_array("update/scales", _with(3e38)), "holds NaN or infinite values"),
    "huge": (_array("update/scales", _with(1e20)), "max-update-norm"),
    "negative and huge": (_array("update/scales", _with(-1e20)), "max-update-norm"),
    "short": (_array("update/int8", lambda a: a[:-1]), "has shape"),
    "long": (_array("update/int8", lambda a: np.concatenate([a, a])), "has shape"),
    "square": (_array("update/int8", lambda a: a[:, None]), "has shape"),
    "fewer scales": (_array("update/scales", lambda a: a[:1]), "has shape"),
    "scalar": (_array("update/scales", lambda a: a[0, ...]), "has shape ()"),
    "dtype": (_array("update/int8", lambda a: a.astype(np.float32)), "dtype float32"),
    "wide scales": (_array("update/scales", lambda a: a.astype(np.float64)), "dtype float64"),
    "byte order": (_array("update/scales", lambda a: a.astype(">f4")), "dtype >f4"),
    "whole model": (_whole, "names differ"),
    "no scales": (_drop_scales, "names differ"),
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
    run = federate(settings(folder, **config), lambda q, r, p: None if trains(q, 1, p) else r)
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
    "update_dtype": "int8",
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

    run = federate(settings(tmp_path, **HOSTILE_RUN), fault)
    assert reason in reason_of_the_bad_node(run)
    assert final_arrays(run) == without_bad


def test_nan_in_training_is_dropped_and_the_next_round_is_good(tmp_path: Path) -> None:
    """The coefficients of one node are NaN in round 2 because its learning rate explodes."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 2, partition):
            node = LocalNode.from_context(grid.contexts[request.metadata.dst_node_id])
            orders = dict(request.content["config"]) | {"learning-rate": 1e30}
            update, _ = node.train(request.content["arrays"], orders)
            reply.content["arrays"] = update
        return reply

    config = settings(tmp_path, update_dtype="int8", num_server_rounds=3, local_steps=3)
    grid = InProcessGrid(app, NODES, config.to_run_config(), fault=fault)
    run = run_on(grid, config)
    (dropped,) = events(run, "reply_dropped")
    assert dropped["round"] == 2
    assert "NaN" in dropped["reason"] or "max-update-norm" in dropped["reason"]


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFFFF])
def test_bfloat16_that_is_not_finite_is_dropped(tmp_path: Path, bits: int) -> None:
    def fault(request: Message, reply: Message, partition: int) -> Message:
        if trains(request, 1, partition):
            _array("update/bfloat16", _with(bits))(reply.content["arrays"])
        return reply

    run = federate(settings(tmp_path, **HOSTILE_RUN | {"update_dtype": "bfloat16"}), fault)
    (dropped,) = events(run, "reply_dropped")
    assert "holds NaN or infinite values" in dropped["reason"]


def test_a_node_that_ignores_update_dtype_is_told(tmp_path: Path) -> None:
    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            reply.content["arrays"] = request.content["arrays"]
        return reply

    with pytest.raises(FederationError, match=r"names differ .*network"):
        federate(settings(tmp_path, **HOSTILE_RUN), fault)


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
        run = federate(settings(tmp_path / dtype, **config))
        finals.append({k: np.frombuffer(v, np.float32) for k, v in final_arrays(run).items()})
    for name, whole in finals[0].items():
        # A bfloat16 has 8 significant bits.
        np.testing.assert_allclose(finals[1][name], whole, atol=1e-3, rtol=2**-8)


def test_a_node_that_is_away_does_not_make_the_others_overshoot(tmp_path: Path) -> None:
    """Seen groups 0 and 2 share prototype 0, group 1 has the other; it is away in every round."""

    def fault(request: Message, reply: Message, partition: int) -> Message | None:
        return None if request.metadata.message_type == "train" and partition == BAD else reply

    few = {"round_timeout": 1.0, "round_retries": 0, "min_nodes": 2}
    memories = []
    for rounds in (1, 3):
        run = federate(settings(tmp_path / str(rounds), num_server_rounds=rounds, **few), fault)
        memory = np.frombuffer(final_arrays(run)["network.memory"], np.float32).reshape(2, -1)
        memories.append(memory)
    np.testing.assert_allclose(memories[1][0], memories[0][0], atol=1e-4)
    assert not memories[1][1].any()
