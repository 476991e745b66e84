"""Evaluation that rides on the training messages, and nodes that come late or lose a message."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message

from pluralllm_fl.federation import lost_messages
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    events,
    final_arrays,
    scores_in,
    tiny_app,
    tiny_config,
    tiny_run,
)
from tests.integration.test_federation_resume import crashed


def story(run: Path) -> list[dict[str, object]]:
    """Every evaluation without what depends on the clock or on the way of sending."""
    volatile = ("time", "seconds", "bytes_up", "bytes_down")
    return [{k: v for k, v in e.items() if k not in volatile} for e in events(run, "evaluation")]


@pytest.mark.parametrize("every", [1, 3])
def test_scores_on_the_way_are_those_of_a_pass_of_their_own(tmp_path: Path, every: int) -> None:
    """A run that ends after a round evaluates its model in a pass of its own."""
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    run = tiny_run(tiny_config(tmp_path / "whole", evaluate_every=every), grid=grid)
    told = {event["round"]: event for event in story(run)}
    assert list(told) == ([0, 1, 2, 3, 4] if every == 1 else [0, 3, 4])
    for rounds in set(told) - {0}:
        ended = tiny_run(tiny_config(tmp_path / f"{rounds}", num_server_rounds=rounds))
        assert story(ended)[-1] == told[rounds]
    kinds = Counter(message.metadata.message_type for message in grid.sent)
    on_the_way = len(told) - 1  # of the group that does not train; the last pass asks all
    assert kinds["train"] == 4 * 4
    assert kinds["evaluate"] == on_the_way + len(GROUPS)


@pytest.mark.parametrize("server_round", [1, 3])
def test_resumed_run_tells_the_same_story(tmp_path: Path, server_round: int) -> None:
    settings = {"strategy": "fedadam"}
    whole = tiny_run(tiny_config(tmp_path / "whole", **settings))
    run = crashed(tiny_config(tmp_path / "cut", **settings), server_round)
    tiny_run(tiny_config(tmp_path / "cut", resume=str(run), **settings))
    assert final_arrays(run) == final_arrays(whole)
    assert story(run) == story(whole)


def test_evaluation_of_the_completed_round_is_not_told_twice(tmp_path: Path) -> None:
    """The scores of round 2 come with round 3, in which the server dies after they were told."""
    settings = {"min_nodes": 4, "round_retries": 0}
    whole = tiny_run(tiny_config(tmp_path / "whole", **settings))

    def no_update(request: Message, reply: Message, _: int) -> Message:
        if reply.content.array_records and request.content["config"]["server-round"] == 3:
            reply.content["arrays"]["weight"] = reply.content["arrays"]["bias"]
        return reply

    run = tmp_path / "cut" / "run"
    with pytest.raises(Exception, match="only 0 good replies"):
        tiny_run(tiny_config(tmp_path / "cut", **settings), fault=no_update)
    tiny_run(tiny_config(tmp_path / "cut", resume=str(run), **settings))
    assert story(run) == story(whole)


def test_early_stopping_keeps_the_best_model(tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.8, 0.7, 0.75, 0.9]

    def score(request: Message, reply: Message, _: int) -> Message:
        if found := scores_in(request, reply):
            server_round, metrics = found
            metrics["validation-alignment"] = scores[server_round]
        return reply

    settings = {"early_stopping_patience": 2, "num_server_rounds": 9}
    run = tiny_run(tiny_config(tmp_path / "stopped", **settings), fault=score)
    best = tiny_run(tiny_config(tmp_path / "best", num_server_rounds=2))
    assert final_arrays(run) == final_arrays(best)
    [stopped] = events(run, "early_stopped")
    # The scores of round 4, the second without gain, arrive one round later.
    assert (stopped["best_round"], stopped["round"]) == (2, 5)


def test_bad_scores_do_not_cost_the_update(tmp_path: Path) -> None:
    def nan(_: Message, reply: Message, partition: int) -> Message:
        if partition == 1 and "evaluation" in reply.content.metric_records:
            reply.content["evaluation"]["all-alignment"] = float("nan")
        return reply

    whole = tiny_run(tiny_config(tmp_path / "whole"))
    run = tiny_run(tiny_config(tmp_path / "bad"), fault=nan)
    assert final_arrays(run) == final_arrays(whole)
    dropped = events(run, "reply_dropped")
    assert {(e["group"], e["phase"], e["round"]) for e in dropped} == {
        ("Drusselstein", "evaluate", r) for r in range(4)
    }


# -- nodes that come late


def deployed(groups: tuple[str, ...] = GROUPS) -> InProcessGrid:
    """A grid whose nodes say that they are no simulation, and that loses messages on demand."""

    def introduce(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "query":
            reply.content["roster"]["groups"] = 0
        return reply

    return InProcessGrid(tiny_app(groups), len(groups), fault=introduce)


def late(grid: InProcessGrid, partition: int, server_round: int) -> None:
    """Hide a node until the server sends the messages of a round."""
    [node_id] = [n for n, index in grid.partitions.items() if index == partition]
    grid.offline.add(node_id)
    introduce = grid.fault

    def appear(request: Message, reply: Message, index: int) -> Message | None:
        if request.content["config"].get("server-round") == server_round:
            grid.offline.discard(node_id)
        assert introduce is not None
        return introduce(request, reply, index)

    grid.fault = appear


@pytest.mark.parametrize("lists", [{}, {"seen_groups": ";".join(g for g in GROUPS[:4])}])
def test_late_node_joins_with_the_next_round(tmp_path: Path, lists: dict[str, str]) -> None:
    grid = deployed()
    late(grid, 3, 2)  # Borduria
    if lists:
        lists = lists | {"unseen_groups": "Elbonia"}
    run = tiny_run(tiny_config(tmp_path, expected_nodes=4, **lists), grid=grid)
    [joined] = events(run, "node_joined")
    assert (joined["group"], joined["role"], joined["round"]) == ("Borduria", "train", 3)
    trained = {e["round"]: sorted(e["by_group"]) for e in events(run, "round")}
    assert "Borduria" not in trained[2]
    assert "Borduria" in trained[3]
    record = json.loads((run / "run.json").read_text())
    assert "Borduria" in record["seen"]
    assert record["mode"] == "deployment"


def test_resumed_run_waits_for_the_late_node_too(tmp_path: Path) -> None:
    grid = deployed()
    late(grid, 3, 1)
    run = tiny_run(tiny_config(tmp_path, expected_nodes=4, num_server_rounds=3), grid=grid)
    config = tiny_config(tmp_path, expected_nodes=4, num_server_rounds=4, resume=str(run))
    tiny_run(config, grid=deployed())
    assert sorted(events(run, "round")[-1]["by_group"]) == sorted(GROUPS[:4])


def test_late_node_of_a_group_that_is_not_listed_stays_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = deployed()
    late(grid, 3, 2)
    run = tiny_run(
        tiny_config(tmp_path, expected_nodes=4, seen_groups="Aland;Cascadia;Drusselstein"),
        grid=grid,
    )
    assert not events(run, "node_joined")
    assert "'Borduria' cannot take part: it is neither in seen-groups" in caplog.text


def test_early_stopping_begins_anew_when_a_group_joins(tmp_path: Path) -> None:
    """Every group gets better in every round; the mean falls when a badly served one joins."""
    grid = deployed()
    introduce = grid.fault
    assert introduce is not None

    def better_and_better(request: Message, reply: Message, partition: int) -> Message | None:
        if request.metadata.message_type == "evaluate":
            gained = int(request.content["config"]["server-round"]) / 100
            served = 0.1 if partition == 3 else 0.5
            reply.content["metrics"]["validation-alignment"] = served + gained
        return introduce(request, reply, partition)

    grid.fault = better_and_better
    late(grid, 3, 2)
    settings = {"early_stopping_patience": 2, "num_server_rounds": 6}
    run = tiny_run(tiny_config(tmp_path, expected_nodes=4, **settings), grid=grid)
    assert [e["group"] for e in events(run, "node_joined")] == ["Borduria"]
    assert not events(run, "early_stopped")
    assert json.loads((run / "summary.json").read_text())["rounds"] == 6


# -- nodes that lose what they were working on


def test_message_lost_by_a_quick_restart_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_messages, "ASK_AFTER", 0.3)
    settings = {"min_nodes": 4, "expected_nodes": 5}
    whole = tiny_run(tiny_config(tmp_path / "whole", **settings), grid=deployed())
    grid, lost = deployed(), []
    introduce = grid.fault

    def lose(request: Message, reply: Message, index: int) -> Message | None:
        if index == 1 and request.metadata.message_type == "train" and not lost:
            lost.append(request)
            return None
        assert introduce is not None
        return introduce(request, reply, index)

    grid.fault = lose
    config = tiny_config(tmp_path / "lost", round_timeout=10.0, **settings)
    run = tiny_run(config, grid=grid)
    assert [e["group"] for e in events(run, "message_resent")] == ["Drusselstein"]
    assert not events(run, "reply_dropped")
    assert final_arrays(run) == final_arrays(whole)


def test_slow_node_is_not_taken_for_a_restarted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question waits behind the message: its answer never comes first."""
    monkeypatch.setattr(lost_messages, "ASK_AFTER", 0.2)
    grid = deployed()
    pull, busy_until = grid.pull_messages, [0.0]

    def answer(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            busy_until[0] = time.monotonic() + 1.0
        elif request.metadata.message_type == "query":
            reply.content["roster"]["groups"] = 0
        return reply

    def slow(message_ids: Iterable[str]) -> list[Message]:
        return pull(message_ids) if time.monotonic() > busy_until[0] else []

    grid.fault = answer
    monkeypatch.setattr(grid, "pull_messages", slow)
    run = tiny_run(
        tiny_config(tmp_path, expected_nodes=5, num_server_rounds=1, round_timeout=60.0), grid=grid
    )
    questions = [m for m in grid.sent[5:] if m.metadata.message_type == "query"]
    assert questions
    assert not events(run, "message_resent")
