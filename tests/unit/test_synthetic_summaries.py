"""Generated judgements of summaries: shape, known truth, and groups that differ."""

from collections import defaultdict

import numpy as np
import pytest

from pluralllm_fl.config import RunConfig
from pluralllm_fl.datasets import SyntheticSpec, load_dataset
from pluralllm_fl.datasets.synthetic_summaries import NAME, ceiling, generate, truth
from pluralllm_fl.preferences import PreferenceDataset
from pluralllm_fl.workspace import for_nodes, spec_of

ONE_EACH = SyntheticSpec(groups=8, questions=120, respondents=1, seed=3)


@pytest.fixture(scope="module")
def judged() -> PreferenceDataset:
    return generate(ONE_EACH)


def test_groups_share_articles_and_judge_pairs_of_their_own(judged: PreferenceDataset) -> None:
    candidates = defaultdict(set)
    for group in judged.groups.values():
        assert len(group) == len({q.text for q in group.answers}) == 120
        for question, share in group.answers.items():
            assert list(question.options) == sorted(question.options)
            assert sorted(share) == [0, 1]
            candidates[question.text] |= set(question.options)
    assert len(candidates) == 120
    assert max(map(len, candidates.values())) == 4
    assert len(judged.questions) > 3 * 120  # of six pairs an article, eight groups judge four


def test_articles_and_summaries_are_the_same_for_every_seed(judged: PreferenceDataset) -> None:
    def articles(dataset: PreferenceDataset) -> set[str]:
        return {question.text for question in dataset.questions}

    other = generate(SyntheticSpec(groups=2, questions=120, respondents=1, seed=4))
    assert articles(other) == articles(judged)
    again = load_dataset(NAME, synthetic=ONE_EACH)
    assert again.fingerprint == judged.fingerprint != other.fingerprint


def test_the_ceiling_is_what_single_judgements_leave() -> None:
    spec = SyntheticSpec(groups=4, questions=400, respondents=1, seed=1)
    found = np.mean(list(ceiling(spec).values()))
    expected = np.mean([p.max() for known in truth(spec).values() for p in known.values()])
    assert found == pytest.approx(expected, abs=0.03)  # three standard errors
    assert 0.75 < expected < 0.9
    many = ceiling(SyntheticSpec(groups=4, questions=50, respondents=10_000, seed=1))
    assert min(many.values()) > 0.97


def test_groups_disagree() -> None:
    """The others' mean of the same pairs is a poor guess, so a group's own judgements pay."""
    spec = SyntheticSpec(groups=8, questions=300, respondents=400, seed=0)
    by_question = defaultdict(list)
    for preferences in truth(spec).values():
        for question, p in preferences.items():
            by_question[question].append(p[0])
    shared = [np.array(p) for p in by_question.values() if len(p) > 2]
    against = [np.mean((p > 0.5) != (np.median(p) > 0.5)) for p in shared]
    assert len(shared) > 100
    assert np.mean(against) > 0.15


def test_the_config_says_how_many_groups_and_respondents() -> None:
    config = RunConfig.default({"dataset": NAME})
    assert (spec_of(config).groups, spec_of(config).respondents) == (8, 20)
    assert spec_of(for_nodes(config, 11)).groups == 11
    survey = spec_of(RunConfig.default())
    assert (survey.groups, survey.respondents) == (7, 400)
    changed = RunConfig.default({"dataset": NAME, "synthetic-respondents": 7})
    assert spec_of(changed).respondents == 7
