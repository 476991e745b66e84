"""A quarter of the training nodes lies: how far they move the default model, and who is named."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray
from safetensors.numpy import load_file

from client_app import app
from pluralllm_fl.arrays import Arrays
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.wire.records import to_arrays
from tests.integration.bad_nodes import ATTACKS, SMALL_PART, with_bad_nodes
from tests.integration.inprocess import Fault, events, federate, final_arrays, real_config

Values = NDArray[np.generic]

pytest.importorskip(PACKAGED, reason="the default language model's package is not installed")

GROUPS, BAD = 10, (2, 5)  # eight train
ROUNDS = 4
SHORT = {"num_server_rounds": 2, "local_steps": 3}


def trained(
    strategy: str, attack: str = "", fault: Fault | None = None, **changes: bool | float | int | str
) -> Path:
    """Run a small federation; return its run directory."""
    config = real_config(
        Path(mkdtemp()), synthetic_groups=GROUPS, synthetic_questions=40, unseen_fraction=0.2,
        strategy=strategy, evaluate_every=9, **{"num_server_rounds": ROUNDS, **changes},
    )  # fmt: skip
    nodes = with_bad_nodes(app, BAD, ATTACKS[attack]) if attack else app
    return federate(config, nodes, fault=fault)


@cache
def honest() -> Path:
    return trained("fedavg")


@cache
def without_the_bad() -> Path:
    def broken(request: Message, reply: Message, partition: int) -> Message:
        if partition in BAD and trains(request):
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "away"), reply_to=request)
        return reply

    return trained("fedavg", fault=broken, **SHORT)


def trains(message: Message) -> bool:
    return message.metadata.message_type == "train"


def dropped(run: Path) -> list[str]:
    return sorted(event["group"] for event in events(run, "reply_dropped"))


def unseen(run: Path) -> tuple[float, float]:
    """Return the unseen groups' alignment with the first and with the last model."""
    first, *_, last = (event["unseen"]["alignment"] for event in events(run, "evaluation"))
    return first, last


@pytest.mark.parametrize("attack", ["sign flip x10", "noise", "small part", "not finite"])
def test_liars_who_stand_out_are_named_and_have_no_part_in_the_model(attack: str) -> None:
    run = trained("fedavg", attack, **SHORT)
    assert dropped(run) == dropped(without_the_bad())
    assert final_arrays(run) == final_arrays(without_the_bad())


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg"])
def test_an_attack_on_a_small_part_stays_within_what_honest_nodes_say(strategy: str) -> None:
    """Whatever the liars send; here even without the check of lengths."""
    sent: dict[int, Values] = {}
    said: dict[int, list[Values]] = {}

    def listen(request: Message, reply: Message, partition: int) -> Message:
        if trains(request):
            server_round = int(request.content["config"]["server-round"])
            sent[server_round] = request.content["arrays"][SMALL_PART].numpy()
            if partition not in BAD:
                value = reply.content["arrays"][SMALL_PART].numpy()
                said.setdefault(server_round, []).append(value)
        return reply

    trained(
        strategy, "small part", listen, num_server_rounds=6, local_steps=2, max_update_ratio=0.0,
    )  # fmt: skip
    spread = [np.ptp(values, axis=0).max() for values in said.values()]
    assert max(spread) > 0
    for server_round, moved in list(sent.items())[1:]:
        values = np.array(said[server_round - 1])
        assert (moved >= values.min(axis=0)).all()
        assert (moved <= values.max(axis=0)).all()


def test_what_passes_the_check_moves_a_small_part_by_no_more_than_the_check_says() -> None:
    """The ratio, times what is usual in the round, times the liars' share of the average."""
    sent: list[Arrays] = []
    updates: dict[int, Arrays] = {}

    def listen(request: Message, reply: Message, partition: int) -> Message:
        if trains(request):
            sent.append(to_arrays(request.content["arrays"]))
            new = to_arrays(reply.content["arrays"])
            updates[partition] = {name: new[name] - sent[0][name] for name in new}
        return reply

    changes = {"num_server_rounds": 1, "local_steps": 3, "client_weight": "uniform"}
    run = trained("fedavg", "small part, slowly", listen, **changes)
    model = load_file(run / "model" / "model.safetensors")
    usual = load_file(trained("fedavg", **changes) / "model" / "model.safetensors")
    lengths = [np.sqrt(sum(np.square(u).sum() for u in one.values())) for one in updates.values()]
    size = sum(value.size for value in model.values())
    parts = [np.linalg.norm(one[SMALL_PART]) for one in updates.values()]
    typical = max(np.median(parts), np.median(lengths) * np.sqrt(model[SMALL_PART].size / size))
    moved = np.linalg.norm(model[SMALL_PART] - usual[SMALL_PART])
    assert not dropped(run)
    assert 0 < moved <= 2 * len(BAD) / len(updates) * 5 * typical


@pytest.mark.parametrize("attack", ["sign flip x4", "constant answer", "permuted answers"])
def test_liars_who_do_not_stand_out_cost_a_robust_strategy_little(attack: str) -> None:
    first, usual = unseen(honest())
    run = trained("multikrum", attack)
    summary = json.loads((run / "summary.json").read_text())
    assert usual > first + 0.05
    assert unseen(run)[1] > usual - 0.02
    assert summary["warnings"] == []
