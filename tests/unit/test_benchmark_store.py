"""The file of benchmark runs: what is kept, what is refused, and paired comparisons."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from alignment import interval  # noqa: E402
from store import Store, measured, options, read, show  # noqa: E402
from trained import configured  # noqa: E402

ABOUT = {"dataset": "a.csv", "embedder": "e"}


def constant(name: str, value: float, seed: int) -> dict[str, Any]:
    """Return a run as a benchmark would."""
    return {name: {"seed": seed, "measures": {"score": value + seed}}}


def test_measuring_again_replaces_runs_of_the_same_name_and_seed_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    first = Store(path, ABOUT)
    first.runs = {
        "ours": [constant("ours", 5.0, seed)["ours"] for seed in range(3)],
        "published": [constant("published", 2.0, seed)["published"] for seed in range(3)],
    }
    first.write()
    again = Store(path, ABOUT)
    again.measure(constant, [("ours", 7.0, seed) for seed in (1, 0)], ["ours"], processes=1)
    held = json.loads(path.read_text())["runs"]
    assert [run["measures"]["score"] for run in held["ours"]] == [7.0, 8.0, 7.0]
    assert [run["seed"] for run in held["published"]] == [0, 1, 2]
    score = measured("score")
    difference = again.paired(("ours", score), ("published", score))
    assert difference is not None
    assert difference["values"] == [5.0, 5.0, 3.0]
    again.runs["published"].pop()
    difference = again.paired(("ours", score), ("published", score))
    assert difference is not None
    assert difference["values"] == [5.0, 5.0]  # the third seed has no partner


def test_paired_interval_is_that_of_a_paired_t_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 5))
    store = Store(tmp_path / "runs.json", ABOUT)
    store.runs = {
        name: [{"seed": s, "measures": {"score": v}} for s, v in enumerate(of_name)]
        for name, of_name in zip(("a", "b"), values.tolist(), strict=True)
    }
    found = store.paired(("a", measured("score")), ("b", measured("score")))
    assert found is not None
    expected = ttest_rel(*values).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert store.paired(("a", measured("score")), ("c", measured("score"))) is None
    assert store.paired(("a", measured("score")), ("b", measured("other"))) is None


def test_one_seed_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.json", ABOUT)
    store.runs = {"a": [{"seed": 0, "measures": {"score": 0.5}}]}
    found = store.over_seeds("a", measured("score"))
    assert found is not None
    assert (found["mean"], found["low"], found["high"]) == (0.5, None, None)


def test_a_table_tells_numbers_of_seeds_where_they_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show("t", {"score": {"a": interval([0.5, 0.5]), "b": interval([0.5, 0.5])}}, ["a", "b"])
    assert "n =" not in capsys.readouterr().out
    show("t", {"score": {"a": interval([0.5, 0.5]), "b": interval([0.5]), "c": None}}, list("abc"))
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| score | 0.5000 (0.5000 to 0.5000), n = 2 | 0.5000, n = 1 | – |"


def test_a_file_of_other_data_or_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    Store(path, ABOUT).write()
    with pytest.raises(SystemExit, match="choose another --output"):
        Store(path, ABOUT | {"embedder": "other"})
    path.write_text('{"measures": {}}')
    with pytest.raises(SystemExit, match="earlier format"):
        Store(path, ABOUT)
    with pytest.raises(SystemExit, match="is missing"):
        read(tmp_path / "absent.json")


def test_changes_that_are_given_come_after_a_benchmarks_own() -> None:
    for given, rounds in (([], 1), (["--set", "num-server-rounds=3", "seed=5"], 3), ([], 1)):
        parser = options("", "x.py", ["num-server-rounds=1"])
        changes = parser.parse_args(["--dataset", "synthetic", *given]).set
        assert configured("ours", "synthetic", 0, changes).num_server_rounds == rounds
