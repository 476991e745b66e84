"""What the terminal shows of a check's findings."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from pluralllm_fl.cli.console import output, shown
from pluralllm_fl.deploy.findings import Finding

_SHOWN = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "wrong": ("WRONG", "bold red"),
    "skipped": ("not tested", "dim"),
}
Check = Callable[[Path, Callable[[int, int], None]], Iterator[Finding]]


def show(check: Check, folder: Path) -> list[Finding]:
    """Print the findings of a check as they come, then their sum; return them."""
    console, findings = output(), []
    with Progress(console=console, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("embedding", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=done < total)

        for finding in check(folder, progress):
            _show(console, finding)
            findings.append(finding)
    console.print()
    console.print(_sum(findings), highlight=False)
    return findings


def as_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as a JSON object."""
    return {
        "ok": all(finding.status != "wrong" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _show(console: Console, finding: Finding) -> None:
    label, style = _SHOWN[finding.status]
    line = Text.assemble((f"{label:<11}", style), f"{finding.step:<13}", shown(finding.message))
    console.print(line, soft_wrap=True)
    if finding.remedy:
        console.print(Text(f"{'':<24}-> {shown(finding.remedy)}"), soft_wrap=True)


def _sum(findings: Sequence[Finding]) -> str:
    counts = {s: sum(finding.status == s for finding in findings) for s in _SHOWN}
    if counts["wrong"]:
        return f"{counts['wrong']} wrong, {counts['warning']} warning(s): see above."
    if counts["warning"]:
        return f"The node can run; {counts['warning']} warning(s) above."
    return "The node can run: ./supernode.sh"
