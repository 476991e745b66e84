"""The contract for networks: a new architecture is one class and one line in a table."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pluralllm_fl
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.model import NETWORKS, PreferencePredictor, initial_predictor
from tests.networks import Toy
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
