"""The round loop: aggregation, determinism, events and artefacts."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Message
from safetensors.numpy import load_file

from pluralllm_fl.evaluation.scores import EVALUATION_SPLITS
from pluralllm_fl.wire.messages import SCORE_KEYS
from pluralllm_fl.wire.packing import unpacked
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    TinyModel,
    events,
    final_arrays,
    scores_in,
    tiny_app,
    tiny_config,
    tiny_run,
)

SEEN = [group for group in GROUPS if group != "Elbonia"]
STRATEGIES = {
    "fedavg": "{}",
    "fedprox": '{"proximal_mu": 0.1}',
    "fedadam": '{"eta": 0.05}',
    "fedyogi": "{}",
    "fedadagrad": "{}",
    "fedavgm": '{"server_momentum": 0.9}',
    "fedmedian": "{}",
    "fedtrimmedavg": '{"beta": 0.3}',
    "krum": "{}",
    "multikrum": '{"num_nodes_to_select": 2}',
    "bulyan": "{}",
    "qfedavg": "{}",
}


def test_fedavg_is_the_weighted_mean(tmp_path: Path) -> None:
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=1))
    start = {k: v.numpy() for k, v in TinyModel(3).state_dict().items()}
    expected = {name: np.zeros_like(value, dtype=np.float64) for name, value in start.items()}
    for group in SEEN:
        noise = np.random.default_rng([0, 1, *group.encode()])
        weight = len(group) / sum(map(len, SEEN))
        for name in ("bias", "weight"):
            pull = np.float32(0.2) * (noise.normal(size=start[name].shape) - start[name])
            expected[name] += weight * np.asarray(start[name] + pull, dtype=np.float32)
    result = load_file(run / "model" / "model.safetensors")
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_seed_is_bit_identical_whatever_the_ids_and_orders(
    tmp_path: Path, strategy: str
) -> None:
    arguments = json.loads(STRATEGIES[strategy])
    if strategy != "bulyan":
        arguments |= {"fraction_train": 0.75, "min_train_nodes": 3}
    results = []
    for attempt, seed in enumerate((3, 3, 4)):
        random.seed(attempt)  # whatever state the process is in
        config = tiny_config(
            tmp_path / str(attempt),
            strategy=strategy,
            strategy_args=json.dumps(arguments),
            seed=seed,
        )
        results.append(final_arrays(tiny_run(config)))
    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize("strategy", ["fedadam", "qfedavg"])
def test_model_keeps_its_dtypes_on_the_wire(tmp_path: Path, strategy: str) -> None:
    # Both compute in float64, which would double the traffic.
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    tiny_run(tiny_config(tmp_path, strategy=strategy), grid=grid)
    sent = [unpacked(m.content)["arrays"] for m in grid.sent if "arrays" in m.content]
    shapes = {(name, a.numpy().shape, a.dtype) for record in sent for name, a in record.items()}
    assert shapes == {("weight", (3,), "float32"), ("bias", (), "float32")}


def test_only_training_groups_train_and_sampling_follows_the_seed(tmp_path: Path) -> None:
    arguments = '{"fraction_train": 0.5, "min_train_nodes": 1}'
    runs = [
        tiny_run(tiny_config(tmp_path / name, strategy_args=arguments, num_server_rounds=8))
        for name in "ab"
    ]
    sampled = [[sorted(e["by_group"]) for e in events(run, "round")] for run in runs]
    assert sampled[0] == sampled[1]
    assert all(len(groups) == 2 and set(groups) < set(SEEN) for groups in sampled[0])
    assert len({tuple(groups) for groups in sampled[0]}) > 1


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    tiny_run(tiny_config(tmp_path))
    assert np.random.random() == expected


def test_events_and_artefacts(tmp_path: Path) -> None:
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=3, evaluate_every=2))
    kinds = [event["event"] for event in events(run)]
    assert kinds == [
        "run_started", "roster", "checkpoint", "evaluation", "round", "checkpoint", "round",
        "checkpoint", "evaluation", "round", "evaluation", "checkpoint", "run_finished",
    ]  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["completed_rounds"], record["error"]) == ("completed", 3, None)
    assert (record["seen"], record["unseen"]) == (SEEN, ["Elbonia"])
    assert record["dataset"]["groups"] == dict.fromkeys(GROUPS, 10)
    assert set(record["versions"]) == {"python", "torch", "flwr", "ray", "numpy", "transformers"}
    evaluation = events(run, "evaluation")[-1]
    assert evaluation["round"] == 3
    block = evaluation["seen"]
    assert sorted(block["by_group"]) == SEEN
    assert block["alignment"] == pytest.approx(np.mean(list(block["by_group"].values())))
    assert block["questions"] == dict.fromkeys(SEEN, 10)
    assert block["test_questions"]["questions"] == dict.fromkeys(SEEN, 2)
    assert list(evaluation["unseen"]["by_group"]) == ["Elbonia"]
    assert evaluation["validation_alignment"] == pytest.approx(block["alignment"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seen"] == block
    assert summary["warnings"] == []
    assert summary["rounds"] == 3
    total = [sum(e["bytes_down"] for e in events(run) if "bytes_down" in e), summary["bytes_down"]]
    assert total[0] == total[1]
    assert sorted(path.name for path in run.glob("[!.]*")) == [
        "checkpoints", "metrics.jsonl", "model", "resume.toml", "run.json", "summary.json",
    ]  # fmt: skip
    card = (run / "model" / "README.md").read_text()
    assert f"{len(SEEN)} trained, 1 only evaluated" in card
    assert record["dataset"]["fingerprint"] in card
    assert not [group for group in GROUPS if group in card]


def test_bytes_are_those_of_the_records(tmp_path: Path) -> None:
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=1))
    train = events(run, "round")[0]
    arrays = 4 * 4  # 3 + 1 float32 values
    numbers = len(EVALUATION_SPLITS) * len(SCORE_KEYS) + 1  # of a node's scores, and a weight
    assert 4 * arrays + 5 * 8 * numbers < train["bytes_up"] < 4 * arrays + 5 * (8 + 28) * numbers
    assert 5 * arrays < train["bytes_down"] < 5 * (arrays + 500)


def test_first_and_last_model_are_evaluated_on_everyone(tmp_path: Path) -> None:
    arguments = '{"fraction_evaluate": 0.4, "min_evaluate_nodes": 1}'
    run = tiny_run(tiny_config(tmp_path, strategy_args=arguments))
    counts = [
        sum(len(e[side]["by_group"]) for side in ("seen", "unseen") if e[side])
        for e in events(run, "evaluation")
    ]
    # In between those that the strategy picks, and the four that train anyway.
    assert counts == [5, 4, 4, 4, 5]


def test_early_stopping_compares_the_same_groups_in_every_round(tmp_path: Path) -> None:
    for fraction in (0.0, 0.4):
        config = tiny_config(
            tmp_path / str(fraction),
            strategy_args=json.dumps({"fraction_evaluate": fraction, "min_evaluate_nodes": 1}),
            early_stopping_patience=9,
        )
        evaluations = events(tiny_run(config), "evaluation")
        assert [sorted(e["seen"]["by_group"]) for e in evaluations] == [SEEN] * 5
        assert None not in {e["validation_alignment"] for e in evaluations}
        assert any(e["unseen"] is None for e in evaluations)


def test_early_stopping_watches_seen_groups_and_restores_the_best(tmp_path: Path) -> None:
    # Alignment of seen groups peaks in round 2; that of the unseen group only rises.
    seen = {0: 0.5, 1: 0.6, 2: 0.8, 3: 0.7, 4: 0.75, 5: 0.9}
    models: dict[int, bytes] = {}

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if found := scores_in(request, reply):
            server_round, metrics = found
            score = 0.3 + server_round / 10 if partition == 0 else seen[server_round]
            for split in ("all", "validation"):
                metrics[f"{split}-alignment"] = score
            models[server_round] = request.content["arrays"]["weight"].numpy().tobytes()
        return reply

    config = tiny_config(tmp_path, num_server_rounds=6, early_stopping_patience=2)
    run = tiny_run(config, fault=fault)
    stopped = events(run, "early_stopped")
    # The scores of round 4 arrive in round 5.
    assert [(e["round"], e["best_round"]) for e in stopped] == [(5, 2)]
    assert final_arrays(run)["weight"] == models[2]
    assert json.loads((run / "summary.json").read_text())["seen"]["alignment"] == 0.8


def test_custom_strategy_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_strategies.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Halved(FedAvg):\n"
        "    def __init__(self, factor: float = 0.5, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.factor = factor\n"
        "    def configure_train(self, server_round, arrays, config, grid):\n"
        "        config['learning-rate'] = config['learning-rate'] * self.factor\n"
        "        return super().configure_train(server_round, arrays, config, grid)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    custom = tiny_config(tmp_path / "a", strategy="my_strategies:Halved", learning_rate=0.2)
    stock = tiny_config(tmp_path / "b", learning_rate=0.1)
    assert final_arrays(tiny_run(custom)) == final_arrays(tiny_run(stock))


def test_differential_privacy_wrapper_works_and_its_noise_is_not_seeded(tmp_path: Path) -> None:
    arguments = json.dumps(
        {"strategy": {"name": "fedavg", "fraction_train": 1.0}, "noise_multiplier": 0.5,
         "clipping_norm": 1.0, "num_sampled_clients": 4}
    )  # fmt: skip
    name = "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"
    results = []
    for attempt in "ab":
        config = tiny_config(
            tmp_path / attempt, strategy=name, strategy_args=arguments, client_weight="uniform"
        )
        grid = InProcessGrid(tiny_app(uniform=True), len(GROUPS))
        results.append(final_arrays(tiny_run(config, grid=grid)))
    assert results[0] != results[1]


def test_a_single_training_group_does_not_wait_for_ever(tmp_path: Path) -> None:
    grid = InProcessGrid(tiny_app(["A", "B"], ["B"]), 2)
    run = tiny_run(tiny_config(tmp_path), grid=grid)
    assert list(events(run, "round")[0]["by_group"]) == ["A"]


def test_early_stopping_does_not_compare_evaluations_that_lack_a_group(tmp_path: Path) -> None:
    """The worst group is silent in round 2: the mean of the others is no improvement."""

    def fault(request: Message, reply: Message, partition: int) -> Message | None:
        if found := scores_in(request, reply):
            server_round, metrics = found
            metrics["validation-alignment"] = 0.1 if partition == 1 else 0.5 + server_round / 100
            if (server_round, partition) == (2, 1):
                del reply.content["evaluation"]
        return reply

    config = tiny_config(tmp_path, num_server_rounds=4, early_stopping_patience=2)
    run = tiny_run(config, fault=fault)
    assert not events(run, "early_stopped")
    assert events(run, "evaluation")[-1]["round"] == 4
    assert json.loads((run / "summary.json").read_text())["rounds"] == 4


def test_early_stopping_does_not_wait_for_a_group_too_small_to_be_scored(tmp_path: Path) -> None:
    """Deployed nodes report zeros for splits of few questions: such a group is in no block."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if found := scores_in(request, reply):
            server_round, metrics = found
            metrics["validation-alignment"] = 0.5 - server_round / 100
            if partition == 1:
                for key in metrics.keys() - {"num-examples"}:
                    metrics[key] = type(metrics[key])(0)
        return reply

    config = tiny_config(tmp_path, num_server_rounds=8, early_stopping_patience=2)
    stopped = events(tiny_run(config, fault=fault), "early_stopped")
    assert [(e["round"], e["best_round"]) for e in stopped] == [(3, 0)]


def test_a_run_that_does_not_learn_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model moves away from zero, which the tiny federation's score measures."""

    def worse(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            weight = request.content["arrays"]["weight"].numpy()
            reply.content["arrays"]["weight"] = Array(np.asarray(weight * np.float32(1.1)))
        return reply

    config = tiny_config(tmp_path)
    with caplog.at_level("WARNING", logger="flwr.pluralllm_fl"):
        run = tiny_run(config, fault=worse)
    (warning,) = json.loads((run / "summary.json").read_text())["warnings"]
    assert "did not learn: alignment of the unseen groups" in warning
    (event,) = events(run, "warning")
    assert (event["text"], event["round"]) == (warning, 4)
    assert warning in caplog.text
    # Going on replaces the verdict.
    tiny_run(tiny_config(tmp_path, resume=str(run), num_server_rounds=9))
    assert not events(run, "warning")
    assert json.loads((run / "summary.json").read_text())["warnings"] == []
