"""The contract for networks: a new architecture is one class and one line in a table."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pluralllm_fl
from pluralllm_fl.config import RunConfig
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.predictor.episodes import GroupTable, QuestionBatch
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.model import NETWORKS, PreferencePredictor, initial_predictor
from pluralllm_fl.predictor.networks import Network, PredictorConfig
from tests.survey import CONFIG, DIMENSION, UNSEEN, survey

PACKAGE = Path(pluralllm_fl.__file__).parent
LOAD = """
import sys
from pathlib import Path
from pluralllm_fl.predictor.model import PreferencePredictor
for folder in sys.argv[1:]:
    PreferencePredictor.from_pretrained(Path(folder))
print("torch._dynamo" in sys.modules)
"""


class Toy(Network):
    """A linear score of options, and how much of the likeliest shares of the context to copy."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.score_option = nn.Linear(dimension, 1)

    @classmethod
    def from_config(cls, config: PredictorConfig) -> Self:
        return cls(config.embedding_dim)

    def encode_context(
        self, context: QuestionBatch | None, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        del known
        if context is None or not len(context):
            return (torch.zeros(()),)
        assert context.distribution is not None
        return (context.distribution.square().mean(),)

    def score(
        self, context: tuple[Tensor, ...], targets: QuestionBatch, known: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor | None]:
        del known
        return self.score_option(targets.embedding)[:, 0] * (1 + context[0]), None

    def objective(
        self, table: GroupTable, config: RunConfig, rng: np.random.Generator, server_round: int
    ) -> Callable[[], tuple[Tensor, ...]]:
        del server_round
        pool = table.members("train")

        def step() -> tuple[Tensor, ...]:
            asked = table.batch(rng.choice(pool, 5, replace=False))
            logits, _ = self.score(self.encode_context(None), asked)
            return (prediction_loss(asked.log_softmax(logits), None, asked, config.loss),)

        return step


def test_a_toy_network_trains_is_saved_loaded_and_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    config = dataclasses.replace(CONFIG, architecture="toy", num_server_rounds=5, local_steps=10)
    workspace = survey(config)
    trained = federated(workspace, config, lambda *_: None).eval()
    assert isinstance(trained.network, Toy)
    start = initial_predictor(config, DIMENSION, "random")
    seen = workspace.table(workspace.seen[0])
    asked = seen.batch(seen.members("train"))

    @torch.no_grad()
    def loss(predictor: PreferencePredictor) -> float:
        log_p = predictor(None, asked).log_probability
        return float(prediction_loss(log_p, None, asked, "cross-entropy"))

    assert loss(trained) < loss(start) - 0.01
    trained.save_pretrained(tmp_path)
    loaded = PreferencePredictor.from_pretrained(tmp_path)
    assert loaded.config.architecture == "toy"
    table = workspace.table(UNSEEN[0])
    context, targets = table.batch(range(8)), table.batch(range(8, 20))
    assert torch.equal(loaded.predict(context, targets), trained.predict(context, targets))
    assert not torch.equal(loaded.predict(None, targets), trained.predict(context, targets))


def sources() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.relative_to(PACKAGE).as_posix(), node


def test_nothing_asks_for_a_networks_type() -> None:
    classes = {cls.__name__ for cls in NETWORKS.values()}
    named = {
        file
        for file, node in sources()
        if isinstance(node, ast.Name | ast.Attribute)
        and (node.id if isinstance(node, ast.Name) else node.attr) in classes
    }
    assert named == set()  # but for the files that define them, and the table, which holds texts


def test_nothing_asks_for_an_architectures_name() -> None:
    """The name stands in the table and as the default, and is read where a predictor is built."""
    literals: set[str] = set()
    for file, node in sources():
        if isinstance(node, ast.Constant) and node.value in NETWORKS:
            literals.add(file)
        if isinstance(node, ast.Attribute) and node.attr == "architecture":
            assert file == "predictor/model.py", f"{file}:{node.lineno} reads the architecture"
    assert literals == {"config.py", "predictor/networks.py"}


def test_loading_a_model_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    """Two seconds for every command; arithmetic on the device "meta" in a constructor does it."""
    for architecture in NETWORKS:
        config = dataclasses.replace(CONFIG, architecture=architecture)
        initial_predictor(config, DIMENSION, "random").save_pretrained(tmp_path / architecture)
    found = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == ["False"]
