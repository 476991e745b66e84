"""Training a policy through TRL: random two-layer models, and the commands on a saved run."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

pytest.importorskip("trl", reason="the extra 'align' is not installed")

from pluralllm_fl.alignment.dpo import dpo
from pluralllm_fl.alignment.grpo import grpo
from pluralllm_fl.alignment.pairs import draw_pairs, lettered_rows
from pluralllm_fl.alignment.policy import Policy, load_policy, save_policy
from pluralllm_fl.alignment.prompts import Prompts, survey_rows
from pluralllm_fl.alignment.sft import divergence, sft
from pluralllm_fl.alignment.targets import Target, open_subject, predicted_targets
from pluralllm_fl.alignment.training import Training
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.opening import open_run
from pluralllm_fl.evaluation.scores import context_and_targets, predict_targets
from pluralllm_fl.preferences import Question, question_split
from tests.command import invoke
from tests.policies import tiny_policy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEA = Question("Tea?", ("Yes", "No"))
TARGETS = [Target(TEA, "Spain", np.array([0.9, 0.1])), Target(TEA, "Chile", np.array([0.2, 0.8]))]


def share_of_yes(policy: Policy, group: str) -> list[float]:
    """Return P(the letter of "Yes") under both orders of the options."""
    prompts, found = Prompts.of(policy), []
    for order in ([0, 1], [1, 0]):
        ids = torch.tensor([prompts.encode(prompts.ask(TEA, group, order))])
        with torch.no_grad():
            p = policy.model(ids).logits[0, -1].softmax(dim=-1)
        found.append(float(p[prompts.letter_ids(2)[order.index(0)]]))
    return found


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random policy that learned to answer as `TARGETS`."""
    folder = tmp_path_factory.mktemp("policies") / "answering"
    training = Training(steps=150, learning_rate=5e-3, rank=16)
    save_policy(sft(tiny_policy(), TARGETS, training).policy, folder)
    return folder


def test_the_loss_is_a_divergence() -> None:
    p, q = np.array([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]]), np.array([[0.3, 0.3, 0.1], [0.1] * 3])
    expected = np.mean([np.sum(scipy.special.rel_entr(a, b)) for a, b in zip(p, q, strict=True)])
    found = divergence(torch.tensor(q).log(), torch.tensor(p))
    assert float(found) == pytest.approx(expected)


def test_matching_gives_each_group_its_distribution_in_every_order(answering: Path) -> None:
    policy = load_policy(answering, device="cpu")
    assert share_of_yes(tiny_policy(), "Spain") == pytest.approx([0, 0], abs=0.05)
    assert share_of_yes(policy, "Spain") == pytest.approx([0.9, 0.9], abs=0.15)
    assert share_of_yes(policy, "Chile") == pytest.approx([0.2, 0.2], abs=0.15)
    assert type(policy.model).__name__ == "LlamaForCausalLM"


def test_the_same_seed_gives_the_same_policy() -> None:
    def trained(seed: int) -> torch.Tensor:
        aligned = sft(tiny_policy(), TARGETS, Training(steps=2, seed=seed))
        return aligned.policy.model.state_dict()["model.layers.1.mlp.up_proj.weight"]

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_pairs_move_the_policy_to_what_is_preferred(answering: Path) -> None:
    policy, training = load_policy(answering, device="cpu"), Training(20, learning_rate=2e-3)
    pairs = draw_pairs([Target(TEA, "Spain", np.array([0.0, 1.0]))], training.rows)
    aligned = dpo(policy, lettered_rows(pairs, Prompts.of(policy)), training)
    assert np.mean(share_of_yes(aligned.policy, "Spain")) < 0.55  # from 0.78


def no(completions: list[str], options: list[list[str]], **_: Any) -> list[float | None]:
    """Reward the letter of "No"; an empty completion gets nothing."""
    letters = ["AB"[listed.index("No")] for listed in options]
    return [
        float(said.strip() == letter) if said.strip() else None
        for said, letter in zip(completions, letters, strict=True)
    ]


def test_any_reward_can_be_optimised(answering: Path) -> None:
    policy, told = load_policy(answering, device="cpu"), []
    rows = survey_rows(Prompts.of(policy), [TEA], ["Spain"], count=8)
    aligned = grpo(
        policy, rows, no, Training(16, batch=4, learning_rate=2e-3),
        on_step=lambda step, logs: told.append((step, logs["reward"])),
    )  # fmt: skip
    assert np.mean(share_of_yes(aligned.policy, "Spain")) < 0.55  # from 0.78
    assert np.mean([r for _, r in told[-4:]]) > np.mean([r for _, r in told[:4]]) + 0.2
    assert told == [(entry["step"], entry["reward"]) for entry in aligned.history]
    assert [step for step, _ in told] == list(range(1, 17))


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "No completion got a reward in 2 steps"), (float("nan"), "reward function gives nan")],
)
def test_rewards_that_teach_nothing_are_errors(given: float | None, message: str) -> None:
    policy = tiny_policy()
    rows = survey_rows(Prompts.of(policy), [TEA], [None])
    with pytest.raises(ConfigError, match=message):
        grpo(policy, rows, lambda prompts, **_: [given] * len(prompts), Training(2, batch=1))


def test_a_run_is_opened_with_the_context_of_its_own_evaluation(run: Path) -> None:
    """Targets are what the predictor says of trained questions, given that context."""
    subject = open_subject(run, "all", context_questions=10)
    workspace, predictor = open_run(run, context_questions=10)
    assert list(subject.groups) == list(workspace.groups)
    splits = [question_split(q, 0, 0.1, 0.1) for q in subject.questions]
    assert set(splits) == {"train"}
    assert len(subject.questions) == sum(
        question_split(q, 0, 0.1, 0.1) == "train" for q in workspace.dataset.questions
    )
    group = workspace.unseen[0]
    table = workspace.table(group)
    context, asked = context_and_targets(table, "train", 10, 0)
    expected = predict_targets(predictor, table, context, asked).predicted
    found = {t.question: t.distribution for t in predicted_targets(subject, "per-group")
             if t.group == group}  # fmt: skip
    ours = np.concatenate([found[table.questions[i]] for i in asked])
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    everyone = predicted_targets(subject, "mean")
    assert {target.group for target in everyone} == {None}
    assert len(everyone) == len(subject.questions)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("sft", []),
        ("dpo", ["--aggregate", "per-group", "--groups", "all"]),
        ("grpo", ["--aggregate", "minimum", "--generations", "4"]),
        ("grpo", ["--aim", "agreement", "--aggregate", "history-weights", "--generations", "4"]),
    ],
)
def test_the_commands(run: Path, answering: Path, tmp_path: Path, method: str, how: Any) -> None:
    output = tmp_path / "aligned"
    result = invoke(
        "align", method, run, "--policy", answering, "--output", output, "--context-questions", 5,
        "--steps", 2, "--batch", 2, "--seed", 3, *how,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"written    {output}" in result.output
    assert "%|" not in result.output  # the bars of TRL
    record = json.loads((output / "align.json").read_text())
    assert record["method"] == method
    assert record["training"]["seed"] == 3
    assert record["policy"] == str(answering)
    assert len(record["groups"]) == (4 if "all" in how else 3)
    assert [entry["step"] for entry in record["history"]] == [1, 2]
    assert record["versions"].keys() >= {"trl", "peft", "pluralllm-fl"}
    assert all(("reward" in entry) == (method == "grpo") for entry in record["history"])
    before, after = load_policy(answering, "cpu").model, load_policy(output, "cpu").model
    key = "model.layers.0.self_attn.q_proj.weight"
    same = torch.equal(before.state_dict()[key], after.state_dict()[key])
    assert method == "grpo" or not same  # completions that are all alike teach nothing
    assert (output / "pairs.jsonl").is_file() == (method == "dpo")


@pytest.mark.parametrize(
    ("method", "how", "message"),
    [
        ("sft", ["--groups", "Nowhere"], "Unknown group 'Nowhere'"),
        ("sft", ["--groups", ";"], 'Name groups as "A;B;…"'),
        ("dpo", ["--aggregate", "means"], "'means' is not one of 'mean'"),
        ("sft", ["--context-questions", "900"], "context-questions = 900 needs at least 901"),
        ("sft", ["--policy", "."], "is not a policy: it holds no config.json"),
        ("sft", ["--output", "."], "is there already: name a new folder as --output"),
        ("sft", ["--learning-rate", "-1"], "learning-rate = -1.0: must be above 0"),
        ("grpo", ["--aim", "wisdom"], "'wisdom' is not one of 'distribution'"),
        ("grpo", ["--aggregate", "log-mean"], "needs rewards above 0"),
    ],
)
def test_what_cannot_work_is_said(
    run: Path, answering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: str, how: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    given = {"--policy": answering, "--output": "new", "--context-questions": 5}
    given |= dict(zip(how[::2], how[1::2], strict=True))
    result = invoke("align", method, run, *(part for pair in given.items() for part in pair))
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("example", ["dpo", "grpo"])
def test_the_examples(
    run: Path, answering: Path, tmp_path: Path, example: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script, output = EXAMPLES / f"{example}.py", tmp_path / example
    told = [str(script), str(run), str(answering), str(output), "--steps", "1"]
    monkeypatch.setattr(sys, "argv", told)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1].startswith(("loss ", "reward "))
    assert load_policy(output, "cpu").model.config.num_hidden_layers == 2
