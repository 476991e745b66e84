"""Per-group results out of checked replies, in the shape of metrics.jsonl."""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import MetricRecord, RecordDict

from pluralllm_fl.evaluation.blocks import split_blocks
from pluralllm_fl.federation.roster import Roster
from pluralllm_fl.runs.events import Event
from pluralllm_fl.wire.messages import LOSS, METRICS, Scores


def weight(content: RecordDict, weight_key: str) -> float:
    """Return a training reply's weight in the average."""
    return _number(content.metric_records[METRICS], weight_key)


def training(content: RecordDict, weight_key: str) -> dict[str, float]:
    """Return one group's training loss and aggregation weight."""
    metrics = content.metric_records[METRICS]
    return {"train_loss": _number(metrics, LOSS), "weight": weight(content, weight_key)}


def weighted_loss(by_group: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return the groups' mean training loss by aggregation weight; None without groups."""
    total = sum(group["weight"] for group in by_group.values())
    if not total:
        return None
    return sum(group["train_loss"] * group["weight"] for group in by_group.values()) / total


def evaluation(scores: Mapping[str, Scores], roster: Roster) -> Event:
    """Return the blocks of seen and unseen groups and the seen groups' validation alignment."""
    validation = {
        group: scores[group]["validation"].alignment
        for group in roster.seen
        if group in scores and scores[group]["validation"].questions
    }
    return {
        "seen": _block(scores, roster.seen),
        "unseen": _block(scores, roster.unseen),
        "validation_alignment": sum(validation.values()) / len(validation) if validation else None,
    }


def warnings(first: Event | None, last: Event | None) -> list[str]:
    """Return sentences on what is wrong with a finished run; empty: nothing."""
    lost = [
        side for side in ("seen", "unseen") if first and last and first[side] and not last[side]
    ]
    unscored = [
        f"No {side} group scored the final model: the log names the reasons." for side in lost
    ]
    return unscored + _not_learned(first, last)


def _not_learned(first: Event | None, last: Event | None) -> list[str]:
    """Return a sentence if the final model is not above the initial one.

    Parameters
    ----------
    first, last : Event, optional
        Evaluations of the initial and of the final model. They are compared on the unseen groups
        that both have, without such on the seen ones.
    """
    for side in ("unseen", "seen"):
        before, after = (event[side] if event else None for event in (first, last))
        if not before or not after:
            continue
        both = sorted(before["by_group"].keys() & after["by_group"].keys())
        if not both:
            continue
        start, end = (sum(b["by_group"][g] for g in both) / len(both) for b in (before, after))
        if end > start:
            return []
        return [
            f"The run did not learn: alignment of the {side} groups is {end:.4f} with the final "
            f"model and was {start:.4f} with the initial one. Look at the reasons of dropped "
            "replies, then at strategy-args and learning-rate."
        ]
    return []


def groups(event: Event, sides: Iterable[str] = ("seen", "unseen")) -> set[str]:
    """Return the groups that an evaluation event covers, of both sides or of those given."""
    return {group for side in sides if event[side] for group in event[side]["by_group"]}


def _block(scores: Mapping[str, Scores], names: Iterable[str]) -> dict[str, Any] | None:
    return split_blocks({group: scores[group] for group in names if group in scores})


def _number(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    assert isinstance(value, int | float)  # checked when the reply came
    return float(value)
