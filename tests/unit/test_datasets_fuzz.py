"""Over 10,000 generated inputs: nothing but DatasetError may come out of the loaders."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import check, render
from pluralllm_fl.datasets.collect import Collector
from pluralllm_fl.datasets.fields import COLUMNS
from pluralllm_fl.datasets.files import csv_rows, json_lines, with_class_names
from pluralllm_fl.errors import DatasetError
from pluralllm_fl.preferences import PreferenceDataset


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def collect(stream: Any, raise_on_bad: bool) -> PreferenceDataset | None:
    """The data set, or None for a DatasetError; any other exception fails the test."""
    collector = Collector("memory", raise_on_bad=raise_on_bad)
    try:
        collector.add_all(stream)
        return collector.dataset("memory")
    except DatasetError as error:
        str(error).encode()  # an error must be printable
        return None


def check_lines(content: bytes) -> None:
    """Skipping and raising agree on which input is clean, and then on its content."""
    lenient = collect(json_lines(content), raise_on_bad=False)
    strict = collect(json_lines(content), raise_on_bad=True)
    if lenient is None or lenient.skipped:
        assert strict is None
    else:
        assert strict is not None
        assert strict.fingerprint == lenient.fingerprint
    for group in lenient.groups.values() if lenient else ():
        for question, answer in group.answers.items():
            assert answer.shape == (len(question.options),)
            assert abs(answer.sum() - 1) < 1e-9
            assert (answer >= 0).all()


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=[]), max_size=8),
    st.sampled_from(["0.5", "[0.5, 0.5]", "['a', 'b']", "true", "1", "NaN", "[" * 2000, ""]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)

_shared = {"group": st.sampled_from(["A", "B"]), "question": st.sampled_from(["p?", "q?"])}
_options = st.sampled_from(
    [["x", "y"], ["x", "y", "z"], ["1", "2"], [1, 2, 3], [0, 1], [0.5, 1.0], ["é", "e\u0301"]]
)
_optional = {
    "weight": st.sampled_from([1, 0.5, 2, 1e-9, 1e15]),
    "ordinal": st.sampled_from([True, False, [1, 2], [3, 2, 1]]),
    "topic": st.text(max_size=3),
}
_numbers = st.sampled_from(
    [[0.5, 0.5], [0.25, 0.75], [1, 0], [0.2, 0.3, 0.5], [0.5, 0.505], [2, 1]]
) | st.lists(st.sampled_from([0, 0.25, 0.5, 0.75, 1, 2, 1e-300, 1e15]), max_size=3)
_choices = st.sampled_from([0, 1, 2, 3, -1, 1.0, 0.5, "x", "1", "1.0", "é", "x\u200b", ["x", "y"]])
near_valid = st.one_of(
    st.fixed_dictionaries(
        {**_shared, "options": _options, "distribution": _numbers}, optional=_optional
    ),
    st.fixed_dictionaries({**_shared, "options": _options, "counts": _numbers}, optional=_optional),
    st.fixed_dictionaries(
        {**_shared, "options": _options, "choice": _choices},
        optional=_optional,
    ),
    st.fixed_dictionaries(
        {
            "group": st.just("A"),
            "prompt": st.just("p"),
            "chosen": st.sampled_from(["x", "y", [{"role": "user", "content": "x"}]]),
            "rejected": st.sampled_from(["x", "z", [{"role": "user", "content": "y"}]]),
        },
        optional=_optional,
    ),
    st.fixed_dictionaries(
        {"group": st.just("A"), "prompt": st.just("p"), "responses": _options},
        optional={
            "scores": _numbers,
            "score_temperature": st.sampled_from([1, 20, 0, "2", None, [1], 1e-9]),
            "ranking": st.permutations([0, 1, 2]),
        },
    ),
    st.fixed_dictionaries(
        {
            "question": st.just("q?"),
            "options": _options,
            "selections": st.dictionaries(st.text(max_size=2), _numbers, max_size=3),
        }
    ),
)
mutations = st.dictionaries(
    st.sampled_from(
        [
            *("group", "question", "options", "distribution", "counts", "choice", "prompt"),
            *("weight", "score_temperature"),
        ]
    ),
    values,
    max_size=2,
)


@examples(1500)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_arbitrary_lines(content: bytes) -> None:
    check_lines(content)


@examples(1000)
@given(values)
def test_arbitrary_json(value: Any) -> None:
    check_lines(json.dumps(value).encode())


@examples(1500)
@given(st.lists(st.tuples(near_valid, mutations | st.just({})), max_size=3))
def test_near_valid_rows(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    lines = [json.dumps({**row, **mutation}) for row, mutation in rows]
    check_lines("\n".join(lines).encode())


@examples(500)
@given(near_valid, st.sampled_from(["group", "question", "options", "topic"]), scalars)
def test_keys_given_twice(row: dict[str, Any], key: str, value: Any) -> None:
    line = json.dumps(row)[:-1] + ", " + json.dumps({key: value})[1:]
    dataset = collect(json_lines(line.encode()), raise_on_bad=False)
    assert dataset is None or key not in row


@examples(500)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 2))
def test_numbers_are_options_or_refused(choices: list[int], others: int) -> None:
    """On a scale of 1 to 5, 0 can only be an index, 5 only an option, the rest both."""
    scale = {"group": "A", "question": "q?", "options": [1, 2, 3, 4, 5]}
    rows = [{**scale, "choice": choice} for choice in choices]
    rows += [{"group": "A", "question": "p?", "options": ["x", "y"], "choice": 0}] * others
    dataset = collect(json_lines("\n".join(map(json.dumps, rows)).encode()), raise_on_bad=True)
    both = any(0 < choice < 5 for choice in choices)
    indices = 0 in choices or (others and 5 not in choices)
    assert (dataset is None) == bool(both and indices)
    if dataset and both:
        answers = next(a for q, a in dataset.groups["A"].answers.items() if q.text == "q?")
        assert answers.tolist() == [choices.count(n) / len(choices) for n in range(1, 6)]


def csv_text(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if type(v) is list else v for k, v in row.items()})
    return out.getvalue()


@examples(1000)
@given(st.lists(near_valid, min_size=1, max_size=4), st.integers(0, 400), st.binary(max_size=3))
def test_damaged_csv(rows: list[dict[str, Any]], position: int, damage: bytes) -> None:
    content = csv_text(rows).encode(errors="replace")
    content = content[:position] + damage + content[position + len(damage) // 2 :]
    for raise_on_bad in (True, False):
        try:
            stream = csv_rows(content, "memory").rows
        except DatasetError:
            continue
        collect(stream, raise_on_bad)


@examples(2000)
@given(st.binary(max_size=80))
def test_arbitrary_csv_bytes(content: bytes) -> None:
    try:
        stream = csv_rows(content, "memory").rows
    except DatasetError:
        return
    collect(stream, raise_on_bad=False)


_python_text = st.lists(
    st.sampled_from(
        [
            *["defaultdict(<class 'list'>, ", "{", "}", "(", ")", "[", "]", "'A'", ": ", ", "],
            *["nan", "\\", '"', "'", "1e999", "-1", "0.5", "None", "__import__('os')", "\n"],
            *["np.float64(0.5)", "-inf", "np.nan", "**", "lambda: 0"],
        ]
    ),
    max_size=14,
).map("".join)
_selections = st.one_of(
    _python_text,
    st.text(max_size=40),
    st.dictionaries(st.text(max_size=3) | st.integers(), values).map(repr),
    st.dictionaries(st.text(max_size=3), _numbers).map(
        lambda d: f"defaultdict(<class 'list'>, {d!r})"
    ),
)


@examples(1000)
@given(_selections, st.sampled_from(["['a', 'b']", "['a', \"b's\", 3]", "[", "('a', 'b')"]))
def test_selections_text(selections: str, options: str) -> None:
    row = {"question": "q?", "selections": selections, "options": options}
    check_lines(json.dumps(row).encode())


@examples(500)
@given(st.lists(near_valid, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_order_of_rows_never_matters(rows: list[dict[str, Any]], random: Any) -> None:
    lines = [json.dumps(row) for row in rows]
    first = collect(json_lines("\n".join(lines).encode()), raise_on_bad=False)
    random.shuffle(lines)
    second = collect(json_lines("\n".join(lines).encode()), raise_on_bad=False)
    assert (first is None) == (second is None)
    if first and second:
        assert first.fingerprint == second.fingerprint
        assert first.skipped == second.skipped
        labels = [(q.topic, q.ordinal) for q in first.questions]
        assert labels == [(q.topic, q.ordinal) for q in second.questions]


_features = st.recursive(
    st.none()
    | st.fixed_dictionaries(
        {"_type": st.sampled_from(["ClassLabel", "Value", 3])},
        optional={"names": st.lists(st.text(max_size=2) | st.integers(), max_size=3) | scalars},
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.fixed_dictionaries({"feature": inner, "_type": st.just("List")})
    ),
    max_leaves=3,
)


@examples(500)
@given(st.lists(near_valid, max_size=3), st.dictionaries(st.sampled_from(COLUMNS), _features))
def test_arbitrary_class_labels(rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    for declared in (features, features.get("choice")):
        stream = with_class_names(iter(list(enumerate(rows, start=1))), declared)
        collect(stream, raise_on_bad=False)


@examples(100)
@given(values | st.text(max_size=9), st.booleans())
def test_arbitrary_metadata(
    tmp_path_factory: pytest.TempPathFactory, metadata: Any, nested: bool
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "metadata.parquet"
    text = json.dumps({"info": {"features": metadata}} if nested else metadata)
    table = pa.table({"group": [0], "question": ["q"], "options": [["x", "y"]], "choice": [1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": text}), path)
    with contextlib.suppress(DatasetError):
        load_dataset(str(path))


@examples(150)
@given(
    st.sampled_from([".jsonl", ".csv", ".parquet"]),
    st.binary(max_size=60) | st.lists(near_valid, max_size=3).map(json.dumps).map(str.encode),
)
def test_real_files(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / f"fuzz{suffix}"
    path.write_bytes(content)
    for load in (lambda: load_dataset(str(path)), lambda: render(check(path))):
        with contextlib.suppress(DatasetError):
            load()
