"""Requests for rewards and their replies: what travels, and what is refused."""

import json
from typing import Any, get_args

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.federation.reply_checks import reward_reply
from pluralllm_fl.reward import Mode
from pluralllm_fl.wire.messages import RewardRequest, Rollouts, rewarded
from pluralllm_fl.wire.reading import BadReply


def test_a_request_arrives_as_it_was_sent() -> None:
    texts = ("", "Tea", "Tea", 'a\n"b" \u00e9 \ud800')  # the last is half a character
    request = RewardRequest("deficit", True, (Rollouts("Tea?", ("Yes", "No"), texts),))
    assert RewardRequest.parse(RecordDict({"config": request.record()})) == request


@pytest.mark.parametrize("prompts", ["[", "{}}", "[1]", '[["Tea?", ["Yes"]]]', "[" * 100_000])
def test_a_request_that_is_none_is_refused(prompts: str) -> None:
    record = ConfigRecord({"mode": "deficit", "nearest": False, "prompts": prompts})
    with pytest.raises(ConfigError, match="same version of pluralllm-fl"):
        RewardRequest.parse(RecordDict({"config": record}))


@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_was_given_is_read(mode: Mode) -> None:
    """One reward a completion that can be scored; all of them may be the largest of any mode."""
    assert reward_reply(rewarded([-0.5, None, 0.0]), mode, 2) == [-0.5, 0.0]
    assert reward_reply(rewarded([None, None]), mode, 0) == []


@pytest.mark.parametrize(
    ("mode", "rewards", "reason"),
    [
        ("likelihood", [float("nan"), -1.0], "not finite"),
        ("likelihood", [-1.0, float("-inf")], "not finite"),
        ("likelihood", [-1.0], "1 rewards for 2 rollouts"),
        ("likelihood", [-1.0] * 3, "3 rewards for 2 rollouts"),
        ("likelihood", -1.0, "no list of rewards for 2"),
        ("likelihood", [-1.0, 0.1], "0.1 is not possible in mode likelihood"),
        ("likelihood", [-1.0, -1e6], "-1e.06 is not possible in mode likelihood"),
        ("deficit", [-1.0, 1.01], "1.01 is not possible in mode deficit"),
        ("deficit", [-1.01, 1.0], "-1.01 is not possible in mode deficit"),
        ("centred", [1.0, 1e9], "1e.09 is not possible in mode centred"),
    ],
)
def test_a_lie_is_refused(mode: Mode, rewards: Any, reason: str) -> None:
    content = RecordDict({"metrics": MetricRecord({"rewards": rewards})})
    with pytest.raises(BadReply, match=reason):
        reward_reply(content, mode, 2)


def test_other_records_are_refused() -> None:
    for content in (
        RecordDict(),
        RecordDict({"other": MetricRecord({"rewards": [-1.0]})}),
        RecordDict({"metrics": MetricRecord({"reward": [-1.0]})}),
    ):
        with pytest.raises(BadReply):
            reward_reply(content, "likelihood", 1)


def test_a_reply_holds_numbers_only() -> None:
    """Neither the texts that were scored nor anything of the answers comes back."""
    (record,) = rewarded([-0.25, None]).values()
    assert json.loads(json.dumps(dict(record))) == {"rewards": [-0.25]}
