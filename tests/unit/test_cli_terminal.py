"""Names, questions and options of others reach the terminal escaped, whichever way they take."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.cli import console as terminal
from pluralllm_fl.cli.console import SafeConsole, labelled, print_json, show_error, shown
from pluralllm_fl.cli.findings import show
from pluralllm_fl.cli.tables import show_bars, show_groups
from pluralllm_fl.deploy.findings import Finding
from pluralllm_fl.errors import ConfigError, DatasetError
from pluralllm_fl.runs.progress import EventTail, RoundProgress

HOSTILE = {
    "colour": "\x1b[31m",
    "title": "\x1b]0;title\x07",
    "8-bit": "\x9b31m",
    "return": "\r",
    "backspace": "\x08",
    "newline": "\n",
    "delete": "\x7f",
    "reading direction": "\u202e",
    "isolate": "\u2066",
    "mark": "\u200f",
    "line separator": "\u2028",
    "surrogate": "\udc9b",
}
VERDICT = "No problems."
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def safe() -> Console:
    return SafeConsole(file=io.StringIO(), width=150, force_terminal=False)


def check(console: Console, text: str) -> None:
    """Nothing of the text is raw, and it shows."""
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    # Rich's `Text` leaves out some of them before we see it.
    assert shown(text) in printed or shown(text.translate({7: None, 8: None, 13: None})) in printed
    for character in set(text) - set("[31m]0;title\n"):
        assert character not in printed
    assert f"before\n{VERDICT}" not in printed


@hostile
def test_every_way_to_the_terminal_is_safe(text: str) -> None:
    named = f"before{text}{VERDICT}"
    block = {
        "by_group": {named: 0.5}, "intervals": {named: (0.4, 0.6)}, "questions": {named: 3},
        "uniform_by_group": {named: 0.3},
    }  # fmt: skip
    table = Table("title")
    table.add_row(Text(named))
    for way in (
        lambda console: console.print(named, markup=False),
        lambda console: console.print(named, soft_wrap=True, style="red"),
        lambda console: labelled(console, "seen", named),
        lambda console: show_groups(console, {"seen": block}),
        lambda console: show_bars(console, [named, "other"], [0.5, 0.5]),
        lambda console: console.print(table),
        lambda console: RoundProgress(console, EventTail(Path("none"), 0.0)).say(named),
    ):
        console = safe()
        way(console)
        check(console, text)


@hostile
def test_what_others_print_is_safe_but_for_lines(text: str) -> None:
    console = safe()
    console.print(Panel(Text(f"before{text}after")))
    assert isinstance(console.file, io.StringIO)
    for character in set(text) - set("[31m]0;title\n"):
        assert character not in console.file.getvalue()


@hostile
@pytest.mark.parametrize("kind", [DatasetError, ConfigError])
def test_errors_are_safe(text: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    console = safe()
    monkeypatch.setattr(terminal, "messages", lambda: console)
    show_error(kind(f"group 'before{text}{VERDICT}'"), f"hint{text}")
    check(console, text)


@hostile
def test_findings_are_safe(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = safe()
    monkeypatch.setattr("pluralllm_fl.cli.findings.output", lambda: console)
    finding = Finding("Data", "wrong", f"before{text}{VERDICT}", f"before{text}{VERDICT}")
    show(lambda _folder, _progress: iter([finding]), Path())
    check(console, text)


@hostile
def test_json_is_safe_and_says_the_same(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"group": text, "ä": "é"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"group": text, "ä": "é"}
    assert "é" in printed
    assert not set(text) & set(printed) - set("[31m]0;title\n")


@hostile
def test_a_group_cannot_fake_the_verdict_of_data_check(text: str, tmp_path: Path) -> None:
    rows = [
        {"group": f"a{text}{VERDICT}", "question": f"q{text}", "options": ["x", f"y{text}"],
         "distribution": [0.5, 0.5]},
        {"group": "b", "question": f"q{text}{VERDICT}", "options": ["x", "y"],
         "distribution": [0.5, 3]},
    ]  # fmt: skip
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 1
    assert VERDICT not in result.output.splitlines()
    assert not any(line.startswith(VERDICT) for line in result.output.splitlines())
    for character in set(text) - set("[31m]0;title\n"):
        assert character not in result.output


def test_common_text_is_left_alone() -> None:
    for text in ("Türkiye", "日本", "क्षि", "نمی‌خواهم", "👩‍👩‍👧", "a\tb", "C:\\new"):
        assert shown(text) == text
