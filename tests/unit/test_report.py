"""The report's page from run directories in every state."""

import html.parser
import json
import re
from pathlib import Path

import pytest

from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.report import setting, size, write_report
from pluralllm_fl.report.figures import Line, Scale, line_chart, ticks
from pluralllm_fl.report.page import ranges
from pluralllm_fl.report.reading import read_run
from tests.report_run import SEEN, UNSEEN, numbered, write_json, write_run

VOID = {"col", "meta", "link", "br", "wbr"}


class _Page(html.parser.HTMLParser):
    """Tag balance, heading levels, text and attributes of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report_of(run_dir: Path) -> _Page:
    page = _Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_report_of_a_completed_run(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "first try", seed=3)
    summary = json.loads((run_dir / "summary.json").read_text())
    page = report_of(run_dir)
    assert page.text.count("first try") == 2
    for block in ("test_questions", "trained_questions"):
        score, (low, high) = (summary["unseen"][block][key] for key in ("alignment", "interval"))
        assert (
            f"questions, unseen groups {score:.3f} 95% interval {low:.3f}–{high:.3f}" in page.text
        )
    assert f"the paper’s measure: {summary['unseen']['alignment']:.3f}" in page.text
    for expected in (*SEEN, *UNSEEN, "706 MB", "1.4 GB", "7 min 12 s", "9f2c41d07b6e", "+0.017",
                     "0.931 (noise floor)", "arXiv 2512.08786", "arXiv 2604.04261"):  # fmt: skip
        assert expected in page.text
    assert "Egypt the update has a NaN in 'blocks.0.attention.weight' train 3 4–5, 8" in page.text
    assert (
        "Round 8 was tried again (attempt 1): only 1 of the 2 good replies that it needs."
        in page.text
    )


def test_page_is_self_contained_and_accessible(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    page = report_of(run_dir)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "img", "iframe", "object"} & set(tags)
    assert [a["href"] for t, a in page.tags if "href" in a and t != "a"] == ["data:,"]
    assert not any("src" in attributes for _, attributes in page.tags)
    assert not re.search(r"url\(|@import", (run_dir / "report.html").read_text(encoding="utf-8"))
    assert ("html", {"lang": "en"}) in page.tags
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in steps)
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert not list(run_dir.glob(".report*"))


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    run_dir = write_run(tmp_path / nasty.replace("/", "_"), seen=(nasty, '" onload="x'),
                        dataset="<b>", **{"run-name": "a;<i>"})  # fmt: skip
    diagnostics = json.loads((run_dir / "diagnostics.json").read_text())
    options = [nasty, "&amp;", "\ud800", "'"]
    diagnostics["examples"][0] |= {
        "question": nasty, "options": options, "true": [0.25] * 4, "predicted": [0.25] * 4
    }  # fmt: skip
    write_json(run_dir / "diagnostics.json", diagnostics)
    with (run_dir / "metrics.jsonl").open("a") as file:
        event = {"event": "reply_dropped", "round": 1, "group": nasty, "reason": nasty}
        file.write(json.dumps(event) + "\n")
    page = report_of(run_dir)
    assert not {"script", "b><i", "i"} & {tag for tag, _ in page.tags}
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.text.count(nasty) >= 5
    assert "&amp;" in page.text


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
@pytest.mark.parametrize("rounds", [0, 1, 11])
def test_unfinished_runs_say_so(tmp_path: Path, status: str, rounds: int) -> None:
    page = report_of(write_run(tmp_path / "run", rounds=rounds, status=status))
    said = {"failed": "This run failed", "interrupted": "This run was interrupted",
            "running": "This run has not finished"}[status]  # fmt: skip
    assert said in page.text
    assert f"{rounds} completed round{'' if rounds == 1 else 's'}" in page.text
    assert "1 good reply, 2 needed, after 2 retries." in page.text or status != "failed"
    assert "Not measured: the context curve" in page.text


def test_run_that_has_only_begun(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=0, status="running")
    (run_dir / "metrics.jsonl").unlink()
    page = report_of(run_dir)
    assert "Nothing has been evaluated yet" in page.text
    assert "metrics.jsonl is absent" in page.text
    assert "No round has been completed or evaluated yet." in page.text


def test_torn_and_odd_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=3, status="interrupted")
    odd = [
        b"[1, 2]",
        b'{"event": "round", "round": 4, "train_loss": NaN}',
        b'{"event": "evaluation"}',
        b'{"event": "evaluation", "round": 4, "seen": {"by_group": {"Egypt": "x"}}}',
        b'{"event": "round_retried"}',
        b"\xff\xfe",
        b"[" * 10**5,
        b'{"event": "round", "round": 5, "tra',
    ]
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b"\n".join(odd))
    page = report_of(run_dir)
    assert "metrics.jsonl: skipped what cannot be read (4 in all: line " in page.text


def test_without_summary_the_last_evaluation_is_shown(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=5)
    expected = json.loads((run_dir / "summary.json").read_text())["unseen"]["alignment"]
    (run_dir / "summary.json").unlink()
    page = report_of(run_dir)
    assert f"the paper’s measure: {expected:.3f}" in page.text
    assert "summary.json is absent" in page.text


def test_a_run_that_did_not_learn_says_so_first(tmp_path: Path) -> None:
    warning = "The final model is not better than the initial one."
    page = report_of(write_run(tmp_path / "run", rounds=1, warnings=(warning,)))
    assert page.text.index(f"Warning: {warning}") < page.text.index("New questions, unseen groups")
    assert "Warning:" not in report_of(write_run(tmp_path / "other", rounds=1)).text


def test_scores_stand_beside_their_references_on_the_same_questions(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)
    summary = json.loads((run_dir / "summary.json").read_text())
    text = report_of(run_dir).text
    for side, marginal, floor in (("unseen", "0.821", "0.931"), ("seen", "0.848", "0.934")):
        new = summary[side]["test_questions"]
        scores = f"{new['alignment']:.3f} {new['uniform']:.3f}"
        assert f"{side} new {scores} {marginal} {floor}" in text


def test_without_held_out_questions_new_ones_are_not_measured(tmp_path: Path) -> None:
    text = report_of(write_run(tmp_path / "run", rounds=1, held_out=False)).text
    assert "New questions, unseen groups not measured: every question trains" in text
    assert "seen new not measured: every question trains" in text
    assert "nan" not in text.lower().replace("a nan in", "")
    assert "None" not in text.replace("None: every reply", "")


def test_references_of_another_shape_are_left_out(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)
    diagnostics = json.loads((run_dir / "diagnostics.json").read_text())
    for odd in ({"marginal": {"unseen": 0.8}, "noise_floor": None}, [], {"marginal": {"seen": []}}):
        write_json(run_dir / "diagnostics.json", {**diagnostics, "references": odd})
        assert "Marginal" not in report_of(run_dir).text


@pytest.mark.parametrize("odd", ["9" * 400, '"many"', "null", "[3]"])
@pytest.mark.parametrize(
    ("file", "key"), [("summary.json", "wall_seconds"), ("diagnostics.json", "context_sizes")]
)
def test_numbers_that_are_none_are_no_crash(tmp_path: Path, file: str, key: str, odd: str) -> None:
    run = write_run(tmp_path / "run")
    content = json.loads((run / file).read_text())
    content[key] = "ODD" if file == "summary.json" else ["ODD"]
    (run / file).write_text(json.dumps(content).replace('"ODD"', odd))
    assert report_of(run).headings


def test_damaged_optional_files_are_named(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=2)
    (run_dir / "summary.json").write_text('{"status": "comp')
    (run_dir / "diagnostics.json").write_text("[]")
    page = report_of(run_dir)
    assert "summary.json cannot be read" in page.text
    assert "diagnostics.json does not hold a JSON object" in page.text
    (run_dir / "summary.json").write_text('{"seen": ' * 10**5)
    assert "summary.json cannot be read" in report_of(run_dir).text


@pytest.mark.parametrize(
    "content", [None, "", '{"schema": 1', "[]", '{"schema": 2}', "{}", "[" * 10**5],
    ids=lambda content: str(content)[:12],
)  # fmt: skip
def test_run_json_missing_or_damaged(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"run\.json") as caught:
        write_report(tmp_path)
    assert re.search(r"Name the folder of a run|Use the version", str(caught.value))
    assert not (tmp_path / "report.html").exists()


def test_minimal_run_json_is_enough(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"schema": 1})
    assert "unknown data set" in report_of(tmp_path).text


def test_only_seen_groups(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", unseen=(), rounds=2, diagnostics=False)
    assert "No unseen group was evaluated" in report_of(run_dir).text


def test_resumed_run_replaces_the_rounds_after_its_checkpoint(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=6)
    events = [
        {"event": "run_started", "rounds": 30, "first_round": 5},
        {"event": "round", "round": 5, "train_loss": 0.25},
        {"event": "early_stopped", "round": 5, "best_round": 3},
    ]
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    run = read_run(run_dir)
    assert [r.number for r in run.rounds] == [1, 2, 3, 4, 5]
    assert run.rounds[-1].loss == 0.25
    assert [e.round for e in run.evaluations] == [0, 1, 2, 3, 4]
    text = report_of(run_dir).text
    assert "Resumed from a checkpoint: round 5 was the first after it." in text
    assert "Stopped early after round 5: validation alignment was best after round 3." in text


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_unseen_groups_have_no_interval(tmp_path: Path, count: int) -> None:
    run_dir = write_run(tmp_path / "run", unseen=UNSEEN[:count], rounds=2)
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["unseen"]["interval"] = [0.7883, 0.7883]  # as earlier versions wrote it
    write_json(run_dir / "summary.json", summary)
    scores = read_run(run_dir).final["unseen"]
    assert scores.interval is None
    assert scores.test is not None
    assert scores.test.interval is None
    page = report_of(run_dir).text
    assert "the paper’s measure: 0." in page
    assert "(95% interval" not in page
    assert "The shaded band" not in page


def test_one_group_is_not_called_even(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", seen=SEEN[:1], unseen=UNSEEN[:1], rounds=2)
    assert "Coefficient of variation" not in report_of(run_dir).text
    run_dir = write_run(tmp_path / "other", seen=SEEN[:2], unseen=UNSEEN[:1], rounds=2)
    assert "Coefficient of variation" in report_of(run_dir).text


def test_a_group_of_few_questions_has_no_interval(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["unseen"]["questions"]["China"] = 2
    summary["unseen"]["intervals"] |= {"China": [0.8, 0.8], "Japan": [0.7, 0.8]}
    write_json(run_dir / "summary.json", summary)
    bounds = {g.name: g.interval for g in read_run(run_dir).final["unseen"].groups}
    assert bounds["China"] is None
    assert bounds["Japan"] == (0.7, 0.8)


@pytest.mark.parametrize("count", [14, 72, 80, 81, 1000])
def test_many_groups_stay_usable(tmp_path: Path, count: int) -> None:
    seen, unseen = numbered(count)
    page = report_of(write_run(tmp_path / "run", seen=seen, unseen=unseen, rounds=1))
    rows = sum(attributes.get("class") == "name" for tag, attributes in page.tags if tag == "th")
    assert rows <= 90
    assert all(name in page.text for name in seen + unseen)
    assert (f"Table of all {count} groups" in page.text) == (count > 80)


def test_bars_start_at_each_groups_own_uniform_score(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["seen"]["uniform_by_group"] = {"Egypt": 0.61}
    write_json(run_dir / "summary.json", summary)
    uniform = {g.name: g.uniform for g in read_run(run_dir).final["seen"].groups}
    assert uniform["Egypt"] == 0.61
    assert uniform["Canada"] == summary["seen"]["uniform"]


@pytest.mark.parametrize("sizes", [[], [0], [0, 1]])
def test_small_groups_have_few_context_sizes(tmp_path: Path, sizes: list[int]) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)
    diagnostics = json.loads((run_dir / "diagnostics.json").read_text())
    diagnostics["context_sizes"] = sizes
    for side in ("seen", "unseen"):
        diagnostics["context_curve"][side] = [0.8, 0.9][: len(sizes)]
    write_json(run_dir / "diagnostics.json", diagnostics)
    assert ("Table of alignment by context size" in report_of(run_dir).text) == bool(sizes)


def test_ordinal_alignment_is_shown_where_there_are_ordinal_questions(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)
    diagnostics = json.loads((run_dir / "diagnostics.json").read_text())
    label = "Ordinal alignment, 1 − W1/max W1"
    for value in (None, {"seen": None, "unseen": None}):
        write_json(run_dir / "diagnostics.json", {**diagnostics, "ordinal_alignment": value})
        assert label not in report_of(run_dir).text
    known = {"seen": 0.917, "unseen": None}
    write_json(run_dir / "diagnostics.json", {**diagnostics, "ordinal_alignment": known})
    assert re.search(label.replace("1 − W1/max W1", r"1 − W1/max W1 .{,90} 0\.917 –"),
                     report_of(run_dir).text)  # fmt: skip


def test_configuration_marks_what_differs(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1, width=64, **{"seen-groups": "A;B"})
    source = write_report(run_dir).read_text(encoding="utf-8")
    marked = re.findall(r"<mark><code>(.*?)</code></mark>", source)
    assert marked == ["globalopinionqa", "A;<wbr>B", "64"]


def test_unwritable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_run(tmp_path / "run", rounds=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtefactError, match=r"report\.html.*No space left on device"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()
    assert not list(run_dir.glob(".report*"))


def test_line_breaks_where_a_value_is_missing() -> None:
    chart = line_chart("Loss", [Line("loss", "loss", [(1, 0.5), (2, None), (3, 0.25)])])
    assert chart is not None
    assert re.findall(r'class="line loss" d="(M[^"]*)"', chart.svg)[0].count("M") == 2
    assert line_chart("Loss", [Line("loss", "loss", [(1, None)])]) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.64, 0.86, ([0.65, 0.7, 0.75, 0.8, 0.85], 2)), (0, 30, ([0, 10, 20, 30], 0)),
     (0.5, 0.5, ([0.5], 2)), (3, 3, ([3], 0)), (-0.02, 0.02, ([-0.02, -0.01, 0, 0.01, 0.02], 2))],
)  # fmt: skip
def test_ticks_are_round_numbers(
    low: float, high: float, expected: tuple[list[float], int]
) -> None:
    assert ticks(low, high) == expected


def test_scale_and_formats() -> None:
    assert [Scale(0.5, 1.0)(v) for v in (0.5, 0.75, 1.0)] == [0, 50, 100]
    assert [size(v) for v in (0, 999, 2_900_000, 1.4e9, 3e13)] == [
        "0 B", "999 B", "2.9 MB", "1.4 GB", "30.0 TB",
    ]  # fmt: skip
    assert [setting(v).unescape() for v in (True, "", None, 0.3)] == ["true", '""', "–", "0.3"]
    assert ranges([8, 4, 5, 4]) == "4–5, 8"
