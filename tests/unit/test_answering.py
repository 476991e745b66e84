"""A policy's answers: letters' probabilities over orders of the options, and what it writes."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from pluralllm_fl.alignment import answering
from pluralllm_fl.alignment.answering import (
    LetterAnswer,
    debiased,
    letter_answers,
    rotations,
    written_answers,
)
from pluralllm_fl.alignment.policy import Policy
from pluralllm_fl.alignment.prompts import Prompts
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import Question
from tests.policies import tiny_policy

TEA = Question("Tea?", ("Yes", "No"))
PRESS = Question("Do you trust the press in your country?", ("A lot", "Some", "None"))
ASKED = [(TEA, None), (PRESS, None), (PRESS, "Spain"), (TEA, "a group with a longer name")]


@pytest.mark.parametrize("chat", [False, True])
def test_letters_are_those_of_each_prompt_alone(
    chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one prompt at a time, without padding; a small limit makes several batches."""
    monkeypatch.setattr(answering, "BATCH_TOKENS", 300)
    policy = tiny_policy(chat)
    prompts, told = Prompts.of(policy), []
    found = letter_answers(policy, ASKED, on_batch=lambda *at: told.append(at))
    assert len(told) > 2
    assert told[-1] == (10, 10)
    for (question, group), answer in zip(ASKED, found, strict=True):
        for order, log_p in zip(answer.orders, answer.log_probability, strict=True):
            ids = prompts.encode(prompts.ask(question, group, order.tolist()))
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            expected = log_softmax(logits.numpy())[prompts.letter_ids(len(order))]
            np.testing.assert_allclose(log_p, expected, atol=1e-4)
        assert answer.mass == pytest.approx(np.exp(answer.log_probability).sum(axis=1).mean())


def test_rotations_give_every_option_every_letter() -> None:
    full = rotations(5, 9)
    assert full[0].tolist() == [0, 1, 2, 3, 4]
    for orders in (full, full.T):
        assert all(sorted(row) == [0, 1, 2, 3, 4] for row in orders.tolist())
    assert rotations(6, 3).tolist() == [
        [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="orders = 0"):
        rotations(3, 0)


def spoken(opinion: FloatArray, prior: FloatArray, orders: int = 9) -> LetterAnswer:
    """Return the answer of a policy whose logits are an opinion plus a liking of letters."""
    turned = rotations(len(opinion), orders)
    logits = opinion[turned] + prior
    return LetterAnswer(turned, log_softmax(logits, axis=1) - 0.7)  # other tokens have the rest


def test_a_policy_that_sees_letters_alone_comes_out_uniform() -> None:
    answer = spoken(np.zeros(3), np.array([4.0, 0.0, -1.0]))
    np.testing.assert_allclose(answer.distribution, 1 / 3)
    np.testing.assert_allclose(answer.first_order().distribution, softmax([4.0, 0.0, -1.0]))
    np.testing.assert_allclose(debiased([answer])[0], 1 / 3)


def test_debiasing_finds_the_opinion_under_the_letters() -> None:
    """Exact where every option had every letter; each number of options has its own prior."""
    rng = np.random.default_rng(0)
    opinions = [rng.normal(size=size) for size in (2, 4, 4, 2, 4)]
    priors = {2: np.array([2.0, 0.0]), 4: np.array([3.0, 0.5, 0.0, -2.0])}
    answers = [spoken(opinion, priors[len(opinion)]) for opinion in opinions]
    for opinion, answer, found in zip(opinions, answers, debiased(answers), strict=True):
        np.testing.assert_allclose(found, softmax(opinion), atol=1e-12)
        assert abs(answer.distribution - softmax(opinion)).max() > 0.01
        assert answer.distribution.sum() == pytest.approx(1)


def test_the_divergence_is_the_mean_over_orders() -> None:
    one, other = (spoken(np.array(x), np.array([1.0, 0.0])) for x in ([0.0, 2.0], [0.5, 0.0]))
    p, q = (softmax(answer.log_probability, axis=1) for answer in (one, other))
    assert one.divergence(other) == pytest.approx(entropy(p, q, axis=1).mean())
    assert one.divergence(one) == 0


def says_b(policy: Policy) -> Policy:
    """Make a policy say the letter B and no more."""
    (letter,) = Prompts.of(policy).letter_ids(2)[1:]
    forward = policy.model.forward

    def said(input_ids: torch.Tensor, **options: Any) -> Any:
        out = forward(input_ids, **options)
        next_token = torch.where(input_ids[:, -1] == letter, policy.tokenizer.eos_token_id, letter)
        out.logits[:, -1] = -torch.inf
        out.logits[:, -1].scatter_(1, next_token[:, None], 0.0)
        return out

    policy.model.forward = said
    return policy


def test_what_is_written_counts_for_the_option_that_had_the_letter() -> None:
    found = written_answers(says_b(tiny_policy(chat=True)), [(PRESS, None), (TEA, "Spain")], 2, 2)
    assert found[0].tolist() == [0, 2, 2, 0]  # B is "Some", then "None"
    assert found[1].tolist() == [2, 2, 0]


def test_babble_states_no_option_and_a_seed_repeats_it() -> None:
    policy = tiny_policy()
    found = [written_answers(policy, [(TEA, None)], 3, seed=7)[0] for _ in range(2)]
    assert found[0].tolist() == found[1].tolist()
    assert found[0].sum() == 6
    assert found[0][-1] > 0
    with pytest.raises(ConfigError, match="samples = 0"):
        written_answers(policy, [(TEA, None)], 0)


def test_policies_that_cannot_be_asked_are_refused() -> None:
    many = Question("Which?", tuple(f"option {i}" for i in range(27)))
    with pytest.raises(ConfigError, match="27 options; letters end at 26"):
        letter_answers(tiny_policy(), [(many, None)])
    with pytest.raises(ConfigError, match="no chat template"):
        letter_answers(tiny_policy(), [(TEA, None)], chat=True)
    assert letter_answers(tiny_policy(), []) == []
