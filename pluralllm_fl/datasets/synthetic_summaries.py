"""Generated judgements of summaries with known truth: offline, deterministic.

Short articles have candidate summaries that differ by length, detail and tone. A group likes these
with weights w_g; of two summaries with features x and y one of its people prefers the first with
probability ``1 / (1 + exp(-w_g · (x - y)))`` (Bradley and Terry). Every group judges one pair of
candidates an article, drawn for it alone: groups share the articles, seldom the pairs.
"""

from collections.abc import Iterator
from itertools import islice, product
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.datasets import summary_texts as texts
from pluralllm_fl.datasets.synthetic import SyntheticSpec
from pluralllm_fl.metrics import pairwise_accuracy
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question

NAME = "synthetic-summaries"
CANDIDATES = 4  # summaries of an article
_SPREAD = 0.4  # of tastes around those of the readership
# A summary's length, detail and tone.
_KINDS = tuple(product((-1.0, 1.0), (-1.0, 1.0), (-1.0, 0.0, 1.0)))


class _Judgement(NamedTuple):
    """One group's shares of a pair, and its true probabilities; shape (2,) each."""

    group: str
    question: Question
    shares: FloatArray
    truth: FloatArray


def generate(spec: SyntheticSpec) -> PreferenceDataset:
    """Generate the judgements; `spec.questions` are articles, one pair each for every group."""
    answers: dict[str, dict[Question, FloatArray]] = {}
    for judged in _judgements(spec):
        answers.setdefault(judged.group, {})[judged.question] = judged.shares
    groups = {
        name: GroupPreferences(name, found, dict.fromkeys(found, float(spec.respondents)))
        for name, found in answers.items()
    }
    return PreferenceDataset(name=NAME, groups=groups)


def truth(spec: SyntheticSpec) -> dict[str, dict[Question, FloatArray]]:
    """Return the probabilities that the judgements were drawn from, (2,), by group and pair."""
    found: dict[str, dict[Question, FloatArray]] = {}
    for judged in _judgements(spec):
        found.setdefault(judged.group, {})[judged.question] = judged.truth
    return found


def ceiling(spec: SyntheticSpec) -> dict[str, float]:
    """Pairwise accuracy of the true tastes against the sampled judgements, by group.

    Nobody can be expected to do better: a single judgement may go against its group's taste.
    """
    known, dataset = truth(spec), generate(spec)
    found = {}
    for name, group in dataset.groups.items():
        question = np.repeat(np.arange(len(group)), 2)
        true = np.concatenate([known[name][q] for q in group.answers])
        judged = np.concatenate(list(group.answers.values()))
        found[name] = pairwise_accuracy(true, judged, question)[0]
    return found


def _judgements(spec: SyntheticSpec) -> Iterator[_Judgement]:
    rng = np.random.default_rng(spec.seed)
    tastes = _groups(spec.groups, rng)
    for article, candidates in islice(_articles(), spec.questions):
        for group, taste in tastes.items():
            pair = [candidates[i] for i in rng.choice(CANDIDATES, 2, replace=False)]
            (first, x), (second, y) = sorted(pair, key=itemgetter(0))  # place tells nothing
            likes = 1 / (1 + np.exp(-taste @ (x - y)))
            share = rng.binomial(spec.respondents, likes) / spec.respondents
            question = Question(article, (first, second), topic="summaries", source=NAME)
            yield _Judgement(
                group, question, np.array([share, 1 - share]), np.array([likes, 1 - likes])
            )


def _groups(number: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Tastes by group, shape (3,): for length, detail and a warm tone.

    Readers of different places are alike, but no two groups the same.
    """
    found = {}
    for g in range(number):
        town, kind = divmod(g, len(texts.READERS))
        era, place = divmod(town, len(texts.PLACES))
        name, centre = texts.READERS[kind]
        taste = np.array(centre) + _SPREAD * rng.standard_normal(3)
        found[f"{name} of {texts.PLACES[place]}" + (f" {era + 1}" if era else "")] = taste
    return found


def _articles() -> Iterator[tuple[str, list[tuple[str, FloatArray]]]]:
    """Articles without end, the same for every seed, with candidates and their features."""
    rng = np.random.default_rng(0)
    known: set[str] = set()
    while True:
        article, candidates = _article(rng)
        if article not in known:
            known.add(article)
            yield article, candidates


def _article(rng: np.random.Generator) -> tuple[str, list[tuple[str, FloatArray]]]:
    story = texts.STORIES[rng.integers(len(texts.STORIES))]
    place, person = str(rng.choice(texts.PLACES)), str(rng.choice(texts.PEOPLE))
    months, percent = int(rng.integers(3, 30)), int(rng.integers(5, 60))
    cost, people = int(rng.integers(2, 99)) * 10_000, int(rng.integers(4, 90)) * 100
    exact = (
        f"The {story.actor} of {place} {story.deed} after {months} months and for {cost:,} euros, "
        f"said {person}."
    )
    why, next_ = f"{_upper(story.background)}.", f"Next, {story.outlook}."
    core = {-1.0: f"The {story.actor} {story.deed}.", 1.0: exact}
    more = {
        -1.0: f"{why} Many {story.users} had asked for it. {next_}",
        1.0: f"{why} Of {people:,} {story.users}, {percent} per cent had asked for it. {next_}",
    }
    candidates = []
    for k in rng.choice(len(_KINDS), CANDIDATES, replace=False):
        length, detail, tone = _KINDS[k]
        body = f"{core[detail]} {more[detail]}" if length > 0 else core[detail]
        before, after = texts.TONES[tone][rng.integers(len(texts.TONES[tone]))]
        candidates.append((f"{before} {body} {after}".strip(), np.array(_KINDS[k])))
    return f"Summarise: {exact} {why} {next_}", candidates


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
