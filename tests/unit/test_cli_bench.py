"""``pluralllm bench``: errors, and how options reach the scripts."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.cli.bench import SCRIPTS

MODULE = sys.modules["pluralllm_fl.cli.bench"]  # the package names the command so, too

DATA = ("--dataset", "a.csv", "--survey", "b.jsonl", "--dialogues", "c.jsonl", "--policy", "d")
ECHO = """
import pathlib, sys
me = pathlib.Path(__file__)
with (me.parents[1] / "calls").open("a") as calls:
    print(me.stem, *sys.argv[1:], file=calls)
"""


@pytest.fixture
def source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree whose benchmarks note how they were called."""
    (tmp_path / "benchmarks").mkdir()
    for name in SCRIPTS:
        (tmp_path / "benchmarks" / f"{name}.py").write_text(ECHO)
    monkeypatch.setattr(MODULE, "app_directory", lambda: tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


def bench(*arguments: str) -> tuple[int, str]:
    """Return exit code and output of the command."""
    result = CliRunner().invoke(app, ["bench", *arguments])
    return result.exit_code, result.output


def test_a_benchmark_gets_its_options_as_they_are(source_tree: Path) -> None:
    assert bench("convergence", "--dataset", "a b.csv", "--recipes", "ours")[0] == 0
    assert (source_tree / "calls").read_text() == ("convergence --dataset a b.csv --recipes ours\n")


def test_all_runs_every_script_in_order_with_the_options_that_it_takes(source_tree: Path) -> None:
    code, said = bench(
        "all", "--dataset", "a.csv", "--survey=b.jsonl", "--dialogues", "c.jsonl", "--seeds", "2",
        "--models", "x=1", "y=2", "--policy", "d",
    )  # fmt: skip
    assert code == 0
    calls = (source_tree / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == list(SCRIPTS)
    held = {call.split()[0]: call.split()[1:] for call in calls}
    assert held["context_size"] == []
    assert held["speed"] == ["--dataset", "a.csv"]
    assert held["transfer"] == ["--dataset", "a.csv", "--seeds", "2", "--survey", "b.jsonl"]
    assert held["dialogues"] == ["--dialogues", "c.jsonl", "--seeds", "2"]
    assert held["demo"] == ["--seeds", "2"]
    assert held["align"] == ["--dataset", "a.csv", "--policy", "d", "--seeds", "2"]
    assert held["embedders"][-3:] == ["--models", "x=1", "y=2"]
    assert all(name in said for name in SCRIPTS)


def test_all_goes_on_after_a_failure_and_tells_it(source_tree: Path) -> None:
    (source_tree / "benchmarks" / "speed.py").write_text("raise SystemExit(3)")
    code, said = bench("all", *DATA)
    assert code == 1
    assert "exit code 3" in said
    assert (source_tree / "calls").read_text().splitlines()[-1].startswith("figures")


def test_the_exit_code_is_the_scripts(source_tree: Path) -> None:
    (source_tree / "benchmarks" / "scale.py").write_text("raise SystemExit(7)")
    assert bench("scale")[0] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("convergense",), 2, "Did you mean 'convergence'?"),
        (("all", *DATA[2:]), 2, "needs --dataset"),
        (("all", *DATA[:2], *DATA[4:]), 2, "needs --survey"),
        (("all", *DATA[:4]), 2, "needs --dialogues"),
        (("all", *DATA[:6]), 2, "needs --policy"),
        (("all", "--datset", "a.csv"), 2, "Did you mean '--dataset'?"),
        (("all", "a.csv"), 2, "options only"),
    ],
)
def test_mistakes_are_told(
    source_tree: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, said = bench(*arguments)
    assert found == code
    assert message in said
    assert not (source_tree / "calls").exists()


def test_without_the_source_tree_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "app_directory", lambda: tmp_path)
    for name in ("transfer", "all"):
        code, said = bench(name, *DATA)
        assert code == 1
        assert "part of the source tree" in " ".join(said.replace("│", " ").split())
