"""The synthetic survey: shape, determinism, known truth, and room to learn."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from pluralllm_fl.datasets import SyntheticSpec, generate, load_dataset
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.metrics import noise_floor
from pluralllm_fl.preferences import PreferenceDataset


@pytest.fixture(scope="module")
def survey() -> PreferenceDataset:
    return generate(SyntheticSpec())


def test_default_shape(survey: PreferenceDataset) -> None:
    assert (len(survey.groups), len(survey.questions)) == (14, 240)
    assert all(len(group) == 240 for group in survey.groups.values())
    ordinal = [q for q in survey.questions if q.ordinal]
    categorical = [q for q in survey.questions if not q.ordinal]
    assert {len(q.options) for q in ordinal} == {4, 5}
    assert {len(q.options) for q in categorical} == {3, 4, 5, 6}
    assert len({q.topic for q in survey.questions}) == 6
    assert all(q.ordinal is None or len(q.ordinal) == len(q.options) for q in survey.questions)


def test_answers_are_shares_among_the_respondents() -> None:
    survey = generate(SyntheticSpec(groups=3, questions=20, respondents=50))
    for group in survey.groups.values():
        for answer in group.answers.values():
            np.testing.assert_allclose(answer * 50, np.round(answer * 50), atol=1e-9)
            assert answer.sum() == pytest.approx(1)


def test_there_is_room_between_the_references(survey: PreferenceDataset) -> None:
    """Uniform < mean of the other groups < noise floor: knowing the group pays."""
    uniform: list[float] = []
    others: list[float] = []
    for question in survey.questions:
        answers = np.stack([group.answers[question] for group in survey.groups.values()])
        mean = (answers.sum(axis=0) - answers) / (len(answers) - 1)
        flat = np.full_like(answers, 1 / answers.shape[1])
        uniform.extend(np.atleast_1d(1 - jensenshannon(answers, flat, axis=1)))
        others.extend(np.atleast_1d(1 - jensenshannon(answers, mean, axis=1)))
    assert 0.6 < np.mean(uniform) < 0.75
    assert np.mean(others) > np.mean(uniform) + 0.03
    assert np.mean(others) < 0.95 - 0.04  # noise_floor of 400 respondents: 0.97


def test_everyone_is_asked_every_question() -> None:
    for group in generate(SyntheticSpec(groups=2, questions=5, respondents=50)).groups.values():
        assert group.respondents == dict.fromkeys(group.answers, 50.0)


@pytest.mark.parametrize(("respondents", "error"), [(1, 0.04), (10, 0.02), (400, 0.005)])
def test_noise_floor_is_what_the_truth_scores(respondents: int, error: float) -> None:
    """The truth is what the same groups answer with practically unlimited respondents.

    The fewer they are, the more the floor's flat prior counts, and the survey is not flat.
    """
    noisy = generate(SyntheticSpec(8, 60, respondents))
    exact = generate(SyntheticSpec(8, 60, 10**14))
    assert noisy.questions == exact.questions
    scores = [
        1 - jensenshannon(exact.groups[name].answers[q], answer)
        for name, group in noisy.groups.items()
        for q, answer in group.answers.items()
    ]
    answers = [p for group in noisy.groups.values() for p in group.answers.values()]
    question = np.repeat(np.arange(len(answers)), [len(p) for p in answers])
    people = np.full(len(answers), float(respondents))
    floor = noise_floor(np.concatenate(answers), people, question).mean()
    assert floor == pytest.approx(np.mean(scores), abs=error)


def test_values_are_shared_within_a_region(survey: PreferenceDataset) -> None:
    def distance(a: str, b: str) -> float:
        one, two = survey.groups[a].answers, survey.groups[b].answers
        return float(np.mean([jensenshannon(one[q], two[q]) for q in survey.questions]))

    assert distance("Northland", "Northmark") < distance("Northland", "Southland")


def test_wording_carries_the_stance() -> None:
    """Groups that like a policy dislike its opposite."""
    survey = generate(SyntheticSpec(groups=5, questions=1280))  # every plain wording
    by_text = {question.text: question for question in survey.questions}
    support = [
        [group.answers[question][:2].sum() for group in survey.groups.values()]
        for question in (
            by_text["Do you support opening new coal mines?"],
            by_text["Do you support public money for solar roofs?"],
        )
    ]
    assert np.corrcoef(support)[0, 1] < -0.8


def test_same_seed_same_survey_in_any_process(survey: PreferenceDataset) -> None:
    code = "from pluralllm_fl.datasets import load_dataset as l; print(l('synthetic').fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == survey.fingerprint
    assert load_dataset("synthetic").fingerprint == survey.fingerprint
    assert generate(SyntheticSpec(seed=1)).fingerprint != survey.fingerprint


def test_many_questions_stay_distinct() -> None:
    for number in (1000, 9000):
        assert len(generate(SyntheticSpec(groups=1, questions=number)).questions) == number


def test_a_thousand_groups() -> None:
    survey = generate(SyntheticSpec(groups=1000))
    assert len(survey.groups) == 1000
    assert all(len(group) == 240 for group in survey.groups.values())


@pytest.mark.parametrize(
    "wrong", [{"groups": 0}, {"questions": 0}, {"respondents": -1}, {"seed": -1}]
)
def test_impossible_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"must be at least 1|use 0 or more"):
        SyntheticSpec(**wrong)
