"""Progress, result tables and run folders as the terminal shows and finds them."""

import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pluralllm_fl.cli.tables import (
    show_bars,
    show_diagnostics,
    show_groups,
    show_standing,
    show_summary,
    show_warnings,
)
from pluralllm_fl.config import Value, toml
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.evaluation.blocks import group_block
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.lookup import close_run, resolve_run
from pluralllm_fl.runs.progress import EventTail, RoundProgress, duration


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def text(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def append(path: Path, *events: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"time": 10.0, **event}) + "\n" for event in events)


def test_tail_waits_for_whole_lines_and_follows_a_rewritten_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = EventTail(path, since=5.0)
    assert tail.read() == []
    append(path, {"event": "old", "time": 1.0}, {"event": "a"})
    with path.open("a") as file:
        file.write('{"event": "b", ')
    assert [e["event"] for e in tail.read()] == ["a"]
    with path.open("a") as file:
        file.write('"time": 11.0}\n')
    assert [e["event"] for e in tail.read()] == ["b"]
    other = tmp_path / "new"
    append(other, {"event": "a"}, {"event": "b", "time": 11.0}, {"event": "c", "time": 12.0})
    other.replace(path)
    assert [e["event"] for e in tail.read()] == ["c"]  # not once more what was told already
    append(path, {"event": "d", "time": 12.0})
    assert [e["event"] for e in tail.read()] == ["d"]


def test_plain_progress_prints_one_line_a_round(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    scores = {"seen": {"alignment": 0.71}, "unseen": {"alignment": 0.69}}
    target = console()
    with RoundProgress(target, EventTail(path, since=0.0)) as progress:
        append(
            path,
            {"event": "run_started", "rounds": 3, "first_round": 1},
            {"event": "roster", "nodes": []},
            {"event": "evaluation", "round": 0, "seen": None, "unseen": scores["unseen"]},
            {"event": "round", "round": 1, "train_loss": 1.25},
            {"event": "evaluation", "round": 1, **scores},
            {"event": "reply_dropped", "round": 2, "group": "[b]", "reason": "NaN"},
            {"event": "round_retried", "round": 2, "attempt": 1, "good": 1, "needed": 2},
            {"event": "round", "round": 2, "train_loss": 1.0},
        )
        progress.update()
        assert "round 2/3" not in text(target)
        append(path, {"event": "round", "round": 3, "train_loss": 0.5})
        append(path, {"event": "early_stopped", "round": 3, "best_round": 1})
    lines = text(target).splitlines()
    assert lines[0] == "round 0  unseen 0.6900"
    time = r"\d\.\d s elapsed"
    scored = rf"round 1/3  loss 1\.2500  seen 0\.7100  unseen 0\.6900  {time}, \d\.\d s left"
    assert re.fullmatch(scored, lines[1])
    assert lines[2] == "Warning: round 2: reply of [b] dropped: NaN"
    assert "1 good replies of 2 needed" in lines[3]
    assert re.match(rf"round 2/3  loss 1\.0000  {time}", lines[4])
    assert re.fullmatch(rf"round 3/3  loss 0\.5000  {time}", lines[5])
    assert lines[6:] == ["Stopped early after round 3; best round 1."]


def test_live_progress_renders_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    target = Console(file=io.StringIO(), width=120, force_terminal=True)
    with RoundProgress(target, EventTail(path, since=0.0)) as progress:
        assert "starting Flower" in rendered(progress)
        append(path, {"event": "run_started", "rounds": 9, "first_round": 4})
        progress.update()
        append(path, {"event": "roster"}, {"event": "round", "round": 4, "train_loss": 1.0})
        progress.update()
        assert "round 4/9" in rendered(progress)
        assert "left" in rendered(progress)
    assert "Resuming with round 4." in text(target)


def rendered(progress: RoundProgress) -> str:
    target = console()
    target.print(progress)
    return text(target)


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 4.21, 59.7, 185, 432.4, 7261)] == [
        "0.4 s", "4.2 s", "60 s", "3 min 05 s", "7 min 12 s", "2 h 01 min",
    ]  # fmt: skip


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]+(-[a-z]+)*", fullmatch=True),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_run_config_is_written_as_toml(values: dict[str, Value]) -> None:
    assert tomllib.loads(toml(values)) == values


def test_a_round_without_a_loss_is_shown_without_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    target = console()
    with RoundProgress(target, EventTail(path, since=0.0)):
        append(path, {"event": "run_started", "rounds": 1, "first_round": 1})
        append(path, {"event": "round", "round": 1, "train_loss": None})
    assert re.fullmatch(r"round 1/1  \d\.\d s elapsed\n", text(target))


def block() -> dict[str, Any]:
    scores = {"[Low]": 0.6, "High": 0.8}
    uniform = {"[Low]": 0.41, "High": 0.42}
    spread = {g: (s - 0.1, s + 0.1) for g, s in scores.items()}
    made = group_block(scores, dict.fromkeys(scores, 7), uniform, spread)
    return {**made, "test_questions": None}


def test_groups_are_sorted_with_interval_and_reference() -> None:
    target = console()
    known = {"pairwise_accuracy_by_group": {"[Low]": 0.75}}
    show_groups(target, {"seen": None, "unseen": block() | known})
    lines = [line.split() for line in text(target).splitlines()]
    assert lines[1] == ["High", "unseen", "0.8000", "0.7000", "–", "0.9000", "7", "0.4200", "–"]
    assert lines[2] == [
        "[Low]",
        "unseen",
        "0.6000",
        "0.5000",
        "–",
        "0.7000",
        "7",
        "0.4100",
        "0.7500",
    ]


def test_summary_shows_means_and_fairness() -> None:
    target = console()
    show_summary(target, {"seen": block(), "unseen": None})
    shown = text(target)
    assert "alignment 0.7000" in shown
    assert "uniform 0.4150" in shown
    assert "CoV 0.1429" in shown
    assert "1/(1+CoV²) 0.9800" in shown
    assert "1/(1+CoV) 0.8750" in shown
    assert "min 0.6000" in shown
    assert "offered" not in shown
    assert "pairs" not in shown
    show_summary(target, {"seen": block() | {"alignment_offered": 0.75}})
    assert "alignment 0.7500 if the options offered are known" in text(target)
    compared = {"pairwise_accuracy": 0.625, "calibration_error": 0.05}
    show_summary(target, {"seen": block() | compared})
    assert "0.6250 in the group's order (a guess 0.5), calibration error 0.0500" in text(target)


@pytest.mark.parametrize(("groups", "told"), [(1, "1 group, too"), (2, "2 groups, too"), (4, "4 ")])
@pytest.mark.parametrize("recorded", [None, [0.7883, 0.7883]])  # earlier versions wrote one
def test_few_groups_have_no_interval_and_one_has_no_fairness(
    groups: int, told: str, recorded: list[float] | None
) -> None:
    scores = {f"g{i}": 0.7883 for i in range(groups)}
    made = group_block(scores, dict.fromkeys(scores, 30), scores, {})
    target = console()
    show_summary(target, {"unseen": {**made, "interval": recorded}})
    assert told in text(target)
    assert "too few for an interval" in text(target)
    assert "–" not in text(target)
    assert ("CoV" in text(target)) == (groups > 1)


def test_enough_groups_have_an_interval() -> None:
    scores = {f"g{i}": 0.7 + i / 100 for i in range(5)}
    target = console()
    show_summary(target, {"unseen": group_block(scores, dict.fromkeys(scores, 30), scores, {})})
    assert "alignment 0.7200 (0.7" in text(target)
    assert "–" in text(target)


@pytest.mark.parametrize("questions", [1, 4])
def test_a_group_of_few_questions_has_no_interval(questions: int) -> None:
    made = group_block({"A": 0.8}, {"A": questions}, {"A": 0.5}, {"A": (0.8, 0.8)})
    for recorded in (made, {**made, "intervals": {"A": [0.8, 0.8]}}):
        target = console()
        show_groups(target, {"unseen": recorded})
        line = text(target).splitlines()[1].split()
        assert line == ["A", "unseen", "0.8000", "–", str(questions), "0.5000", "–"]


def test_diagnostics_leave_out_what_is_unknown() -> None:
    target = console()
    show_diagnostics(
        target,
        {
            "context_gain": {"seen": 0.01, "unseen": -0.002},
            "wrong_context": {"seen": None, "unseen": None},
        },
    )
    assert text(target).splitlines() == [
        "context    gain over no context: seen +0.0100, unseen -0.0020",
    ]


def side(all_: float, new: float | None, trained: float, uniform: float) -> dict[str, Any]:
    def part(score: float, asked: int) -> dict[str, Any]:
        return group_block({"A": score}, {"A": asked}, {"A": uniform}, {"A": (score, score)})

    return {
        **part(all_, 10),
        "test_questions": None if new is None else part(new, 2),
        "trained_questions": part(trained, 10 if new is None else 8),
    }


def test_new_and_trained_questions_stand_beside_their_references() -> None:
    target = console()
    references = {
        "marginal": {"unseen": {"new": 0.79, "trained": 0.80, "all": 0.798}},
        "noise_floor": {"unseen": {"new": 0.95, "trained": 0.96, "all": 0.955}},
    }
    blocks = {"seen": side(0.85, 0.8, 0.86, 0.65), "unseen": side(0.82, 0.78, 0.83, 0.66)}
    show_standing(target, blocks, references)
    shown = text(target)
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["questions", "predictor", "uniform", "marginal", "noise", "floor"]
    assert lines[1] == ["unseen", "new", "0.7800", "0.6600", "0.7900", "0.9500"]
    assert lines[2] == ["unseen", "trained", "0.8300", "0.6600", "0.8000", "0.9600"]
    assert lines[3] == ["unseen", "all", "0.8200", "0.6600", "0.7980", "0.9550"]
    assert lines[4] == ["seen", "new", "0.8000", "0.6500", "–", "–"]
    said = " ".join(shown.split())
    new = "On questions that nobody trained on, the predictor is 0.120 above a uniform guess and"
    assert f"{new} 0.010 below the marginal, which is what the seen groups' own answers" in said
    assert (
        "On trained questions, the predictor is 0.170 above a uniform guess and 0.030 above" in said
    )
    assert "would score about 0.950" in said


def test_questions_that_all_train_are_said_to_be_unmeasured() -> None:
    target = console()
    show_standing(target, {"seen": None, "unseen": side(0.8, None, 0.8, 0.66)}, {})
    lines = [line.split() for line in text(target).splitlines()]
    assert lines[:3] == [
        ["questions", "predictor", "uniform"],
        ["unseen", "new", "not", "measured", "–"],
        ["unseen", "trained", "0.8000", "0.6600"],
    ]
    assert "New questions are not measured: every question trains." in text(target)


def test_another_data_set_has_no_trained_questions() -> None:
    target = console()
    block = side(0.8, 0.7, 0.8, 0.7) | {"trained_questions": None}
    show_standing(target, {"unseen": block}, {})
    said = " ".join(text(target).split())
    assert "trained questions" not in said.lower()
    assert "level with a uniform guess" in said
    show_standing(target, {"unseen": block | {"test_questions": None}}, {})
    assert "On all questions, the predictor is 0.100 above a uniform guess." in text(target)


def test_warnings_stand_out_and_their_absence_is_silent() -> None:
    target = console()
    show_warnings(target, [])
    assert text(target) == ""
    show_warnings(target, ["The final model is [not] better."])
    assert "Warning" in text(target)
    assert "The final model is [not] better." in text(target)


def test_ordinal_alignment_is_a_line_of_its_own() -> None:
    target = console()
    show_diagnostics(target, {"ordinal_alignment": {"seen": 0.9, "unseen": 0.85}})
    show_diagnostics(target, {"ordinal_alignment": {"seen": None, "unseen": None}})
    assert text(target).splitlines() == [
        "ordinal    alignment, 1 − W1/max W1: seen 0.9000, unseen 0.8500"
    ]


def test_bars_are_proportional() -> None:
    target = console()
    show_bars(target, ["Yes", "No [really]", "Never"], [0.5, 0.25, 0.25])
    lines = text(target).splitlines()
    assert [line.count("█") for line in lines] == [15, 7, 7]
    assert lines[1].startswith("No [really]")
    assert lines[0].rstrip().endswith("50.0%")


def make_run(folder: Path, status: str, started: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status, "started": started}))
    return folder


def test_newest_completed_run_of_an_output_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "z-old", "completed", "2026-01-01T00:00:00+00:00")
    newest = make_run(tmp_path / "a-new", "completed", "2026-01-02T00:00:00+00:00")
    broken = make_run(tmp_path / "broken", "interrupted", "2026-01-03T00:00:00+00:00")
    assert resolve_run(tmp_path) == newest
    assert resolve_run(tmp_path, completed=False) == broken
    assert resolve_run(broken) == broken
    with pytest.raises(ArtefactError, match="Did you mean 'a-new'"):
        resolve_run(tmp_path / "a-newer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="no completed run"):
        resolve_run(tmp_path / "empty")
    for impossible in ("~nosuchuser/run", "x" * 5000):
        with pytest.raises(ArtefactError, match="no usable path"):
            resolve_run(Path(impossible))


def test_closing_a_killed_run_drops_what_no_checkpoint_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "running", "2026-01-01T00:00:00+00:00")
    events = run / "metrics.jsonl"
    append(events, {"event": "round", "round": 1}, {"event": "checkpoint", "round": 1})
    append(events, {"event": "round", "round": 2})
    with events.open("a") as file:
        file.write('{"event": "eval')
    close_run(run, "interrupted", None)
    found = json.loads((run / "run.json").read_text())
    assert (found["status"], found["completed_rounds"]) == ("interrupted", 1)
    kept = [json.loads(line) for line in events.read_text().splitlines()]
    assert [e["event"] for e in kept] == ["round", "checkpoint", "run_finished"]
    close_run(run, "failed", "later")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    close_run(tmp_path / "absent", "failed", "never began")
    assert not (tmp_path / "absent").exists()


def test_a_run_that_goes_on_in_another_process_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "running", "2026-01-01T00:00:00+00:00")
    append(run / "metrics.jsonl", {"event": "round", "round": 1})
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with RunDirectory.open(run).claimed():
        close_run(run, "failed", "refused")
        assert before == {name: (run / name).read_bytes() for name in before}
    close_run(run, "failed", "its process died")
    assert json.loads((run / "run.json").read_text())["error"] == "its process died"
