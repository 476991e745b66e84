"""A generated survey with known truth: offline, deterministic, shaped like a real one.

Every group g holds values z_g (openness, state, trust) around the centre of its region, and an
answering style. Its true distribution over the options o of a question is
``softmax_o(base_o + loading_o · z_g)``, where base and loading follow from the words: topic,
direction of the policy, stance of the frame, position of the option. So a new question can be
predicted from its text and a new group from some of its answers. What the data set holds are
shares among a finite number of sampled respondents.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.datasets import synthetic_texts as texts
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question

_CATEGORICAL_EVERY = 4
_QUESTIONS_A_TOPIC = 40  # few fields asked about often: a new question has relatives
_SPREAD_IN_REGION = 0.5
_SHARPNESS = 0.85  # how strongly values move answers
_APPEAL = 2.6  # how strongly answers lean the same way in every group
_MODERATION = 2.0  # how much rarer the ends of a scale are than its middle
_STYLE = 0.35  # how much groups differ in choosing the ends of a scale


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """Size and seed of the survey.

    Parameters
    ----------
    groups, questions : int
        At least 1 each.
    respondents : int
        Sampled respondents per group and question; fewer means noisier answers.
    seed : int
        Draws the groups, the selection of questions and the respondents. Wording and meaning
        of the questions are the same for every seed.
    """

    groups: int = 14
    questions: int = 240
    respondents: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("groups", "questions", "respondents"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"synthetic-{name} is {getattr(self, name)}; it must be at least 1."
                )
        if self.seed < 0:
            raise ConfigError(f"The seed of the synthetic survey is {self.seed}; use 0 or more.")


@dataclass(frozen=True, slots=True)
class _Item:
    """A question with its answer model: base (options,) and loading (options, 4)."""

    question: Question
    base: FloatArray
    loading: FloatArray


def generate(spec: SyntheticSpec) -> PreferenceDataset:
    """Generate the survey."""
    rng = np.random.default_rng(spec.seed)
    names, latents = _groups(spec.groups, rng)
    items = _items(spec.questions, rng)
    sampled = []
    for item in items:
        logits = item.base + latents @ item.loading.T  # (groups, options)
        logits -= logits.max(axis=1, keepdims=True)
        truth = np.exp(logits)
        truth /= truth.sum(axis=1, keepdims=True)
        sampled.append(rng.multinomial(spec.respondents, truth) / spec.respondents)
    respondents = {item.question: float(spec.respondents) for item in items}
    groups = {
        name: GroupPreferences(
            name, {item.question: sampled[i][g] for i, item in enumerate(items)}, respondents
        )
        for g, name in enumerate(names)
    }
    return PreferenceDataset(name="synthetic", groups=groups)


def _groups(number: int, rng: np.random.Generator) -> tuple[list[str], FloatArray]:
    """Names and latents, shape (groups, 4): three values and the answering style."""
    names, latents = [], np.empty((number, 4))
    for g in range(number):
        region, centre = texts.REGIONS[g % len(texts.REGIONS)]
        era, place = divmod(g // len(texts.REGIONS), len(texts.PLACES))
        names.append(f"{region}{texts.PLACES[place]}" + (f" {era + 1}" if era else ""))
        latents[g, :3] = np.array(centre) + _SPREAD_IN_REGION * rng.standard_normal(3)
        latents[g, 3] = rng.standard_normal()
    return names, latents


def _items(number: int, rng: np.random.Generator) -> list[_Item]:
    """Draw questions: one categorical in every four, the plainest wordings first."""
    size = min(max(round(number / _QUESTIONS_A_TOPIC), 1), len(texts.TOPICS))
    topics = [texts.TOPICS[i] for i in rng.permutation(len(texts.TOPICS))[:size]]
    scaled, categorical = _scaled_items(topics, rng), _categorical_items(topics, rng)
    return [
        next(categorical if i % _CATEGORICAL_EVERY == _CATEGORICAL_EVERY - 1 else scaled)
        for i in range(number)
    ]


def _prefixes() -> Iterator[str]:
    """Openings that keep wordings distinct, without end."""
    yield from texts.QUALIFIERS
    for wave in count(2):
        for qualifier in texts.QUALIFIERS:
            yield f"Survey wave {wave}. {qualifier}"


def _scaled_items(topics: list[texts.Topic], rng: np.random.Generator) -> Iterator[_Item]:
    subjects = [
        (topic, subject, direction)
        for topic in topics
        for direction, group in ((1, topic.forward), (-1, topic.backward))
        for subject in group
    ]
    for prefix in _prefixes():
        pairs = [(s, scale) for s in subjects for scale in texts.SCALES]
        for index in rng.permutation(len(pairs)):
            (topic, subject, direction), scale = pairs[index]
            yield _scaled_item(prefix, topic, subject, direction, scale)


def _scaled_item(
    prefix: str, topic: texts.Topic, subject: str, direction: int, scale: texts.Scale
) -> _Item:
    options = scale.options
    friendly = np.linspace(1.0, -1.0, len(options))  # position of each option, friendliest first
    lean = direction * topic.appeal + 0.4 * _popularity(subject)
    base = (scale.openness + _APPEAL * scale.stance * lean) * friendly - _MODERATION * friendly**2
    loading = np.zeros((len(options), 4))
    pull = _SHARPNESS * scale.stance * direction * np.array(topic.values)
    loading[:, :3] = np.outer(friendly, pull)
    loading[:, 3] = _STYLE * (2 * friendly**2 - 1)
    question = Question(
        prefix + scale.template.format(subject),
        options,
        ordinal=tuple(float(i) for i in range(len(options))),
        topic=topic.name,
        source="synthetic",
    )
    return _Item(question, base, loading)


def _popularity(phrase: str) -> float:
    """How well liked a phrase is everywhere, in -1..1: part of its meaning, so fixed for ever."""
    return int(hashlib.sha256(phrase.encode()).hexdigest()[:8], 16) / 2**31 - 1


def _categorical_items(topics: list[texts.Topic], rng: np.random.Generator) -> Iterator[_Item]:
    frames = [(topic, frame, topic.goals) for topic in topics for frame in texts.GOAL_FRAMES]
    frames += [(topic, texts.DECIDER_FRAME, texts.DECIDERS) for topic in topics]
    for prefix in _prefixes():
        for index in rng.permutation(len(frames)):
            topic, frame, candidates = frames[index]
            size = int(rng.integers(3, len(candidates) + 1))
            chosen = [candidates[i] for i in sorted(rng.permutation(len(candidates))[:size])]
            loading = np.zeros((size, 4))
            loading[:, :3] = _SHARPNESS * np.array([values for _, values in chosen])
            question = Question(
                prefix + frame.format(topic.name),
                tuple(option for option, _ in chosen),
                topic=topic.name,
                source="synthetic",
            )
            yield _Item(question, _APPEAL * np.array([_popularity(o) for o, _ in chosen]), loading)
