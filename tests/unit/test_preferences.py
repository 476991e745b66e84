"""The domain: identity, fingerprints and splits."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import (
    GroupPreferences,
    PreferenceDataset,
    Question,
    question_split,
    split_groups,
)

QUESTIONS = [Question(f"Question {i}?", ("yes", "no", "maybe")) for i in range(12)]


def dataset(
    names: tuple[str, ...] = ("A", "B", "C", "D"),
    *,
    seen: tuple[str, ...] = (),
    unseen: tuple[str, ...] = (),
) -> PreferenceDataset:
    rng = np.random.default_rng(0)
    groups = {
        name: GroupPreferences(name, {q: rng.dirichlet(np.ones(3)) for q in QUESTIONS})
        for name in names
    }
    return PreferenceDataset("test", groups, default_seen=seen, default_unseen=unseen)


def test_labels_take_no_part_in_identity() -> None:
    plain = Question("q?", ("a", "b"))
    labelled = Question("q?", ("a", "b"), ordinal=(0.0, 1.0), topic="t", source="s")
    assert plain == labelled
    assert plain.id == labelled.id
    assert hash(plain) == hash(labelled)


def test_identity_tells_options_order_and_boundaries_apart() -> None:
    ids = {
        Question("q?", ("a", "b")).id,
        Question("q?", ("b", "a")).id,
        Question("q?", ("a", "b", "c")).id,
        Question("q?a", ("b", "c")).id,
        Question("q?", ("ab", "c")).id,
        Question("q?", ("a", "bc")).id,
    }
    assert len(ids) == 6
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)


def test_answers_and_groups_are_sorted_whatever_the_order_given() -> None:
    one = dataset(("A", "B"))
    groups = {
        name: GroupPreferences(name, dict(reversed(list(one.groups[name].answers.items()))))
        for name in ("B", "A")
    }
    two = PreferenceDataset("other name", groups)
    assert list(two.groups) == ["A", "B"]
    ids = [q.id for q in two.groups["A"].answers]
    assert ids == sorted(ids)
    assert two.questions == one.questions
    assert two.fingerprint == one.fingerprint


def test_fingerprint_follows_every_part_of_the_content() -> None:
    base = dataset(("A", "B"))
    changed = dict(base.groups["A"].answers)
    changed[QUESTIONS[0]] = np.array([0.2, 0.3, 0.5])
    fewer = {q: p for q, p in changed.items() if q != QUESTIONS[0]}
    variants = [
        base,
        dataset(("A", "C")),
        dataset(("A",)),
        PreferenceDataset("x", {**base.groups, "A": GroupPreferences("A", changed)}),
        PreferenceDataset("x", {**base.groups, "A": GroupPreferences("A", fewer)}),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


def test_question_split_has_the_asked_sizes() -> None:
    sizes = Counter(
        question_split(Question(f"Number {i}?", ("a", "b")), 0, 0.1, 0.2) for i in range(5000)
    )
    assert sizes["test"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert sizes["validation"] / 5000 == pytest.approx(0.1, abs=0.02)


@settings(max_examples=100, derandomize=True, database=None)
@given(st.text(min_size=1), st.integers(0, 10))
def test_one_prompt_is_on_one_side_whatever_its_options(text: str, seed: int) -> None:
    text = text.encode(errors="ignore").decode()
    a = question_split(Question(text, ("a", "b")), seed, 0.3, 0.3)
    b = question_split(Question(text, ("c", "d", "e"), topic="t"), seed, 0.3, 0.3)
    assert a == b


def test_question_split_depends_on_the_seed_and_is_stable() -> None:
    by_seed = [tuple(question_split(q, seed, 0.3, 0.3) for q in QUESTIONS) for seed in range(4)]
    assert len(set(by_seed)) == 4
    assert {question_split(q, 0, 0.0, 0.0) for q in QUESTIONS} == {"train"}
    assert {question_split(q, 0, 0.0, 1.0) for q in QUESTIONS} == {"test"}


def test_growing_test_fraction_only_adds_questions() -> None:
    def tested(fraction: float) -> set[Question]:
        return {q for q in QUESTIONS if question_split(q, 3, 0.0, fraction) == "test"}

    assert tested(0.2) <= tested(0.5) <= tested(0.9)


def test_explicit_lists_win() -> None:
    data = dataset(seen=("A",), unseen=("B",))
    assert split_groups(data, ["C", "A", "C"], ["D"], 0.3, 0) == (("A", "C"), ("D",))


def test_the_other_side_of_one_list_holds_the_rest() -> None:
    data = dataset(seen=("A",), unseen=("B",))
    assert split_groups(data, ["C"], [], 0.3, 0) == (("C",), ("A", "B", "D"))
    assert split_groups(data, [], ["C"], 0.3, 0) == (("A", "B", "D"), ("C",))


def test_the_sources_own_split_comes_before_the_fraction() -> None:
    data = dataset(seen=("D", "A"), unseen=("B",))
    assert split_groups(data, [], [], 0.9, 0) == (("A", "D"), ("B",))


def test_fraction_splits_all_groups_by_seed() -> None:
    data = dataset(tuple(f"group {i}" for i in range(20)))
    splits = [split_groups(data, [], [], 0.3, seed) for seed in range(5)]
    for seen, unseen in splits:
        assert (len(seen), len(unseen)) == (14, 6)
        assert sorted([*seen, *unseen]) == sorted(data.groups)
    assert len(set(splits)) == 5
    assert split_groups(data, [], [], 0.3, 4) == splits[4]


@pytest.mark.parametrize("name", ["A, B", "A,B", "C, Dd", "A,B,C"])
def test_a_list_of_groups_with_commas_gets_the_right_hint(name: str) -> None:
    with pytest.raises(ConfigError, match="Separate groups with ';', not with ','") as caught:
        split_groups(dataset(), [name], [], 0.5, 0)
    assert "Did you mean" not in str(caught.value)


def test_a_comma_in_a_name_gets_no_hint_for_lists() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'Korea, South'"):
        split_groups(dataset(("Korea, South", "Japan")), ["Korea, Sout"], [], 0.5, 0)


def test_group_names_that_cannot_work() -> None:
    data = dataset(("Northland", "Southland"))
    with pytest.raises(ConfigError, match=r"Unknown group 'Nortland'.*Did you mean 'Northland'"):
        split_groups(data, ["Nortland"], [], 0.3, 0)
    with pytest.raises(ConfigError, match="both seen and unseen: Northland"):
        split_groups(data, ["Northland"], ["Northland"], 0.3, 0)
    with pytest.raises(ConfigError, match="No seen group"):
        split_groups(data, [], ["Northland", "Southland"], 0.3, 0)
