"""The node's data file and its embeddings, told without quoting any of it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.check import CheckReport
from pluralllm_fl.datasets.check import check as check_file
from pluralllm_fl.datasets.files import FORMATS
from pluralllm_fl.deploy.findings import Finding
from pluralllm_fl.errors import DatasetError, PluralLLMError
from pluralllm_fl.preferences import PreferenceDataset
from pluralllm_fl.runs.progress import duration

_SHOWN = 5  # line numbers listed for one reason


def check_data(path: Path, group: str | None) -> tuple[PreferenceDataset | None, list[Finding]]:
    """Load the file as the node will, and see what it holds for the group.

    Parameters
    ----------
    path : Path
    group : str or None
        None: unknown, the file alone is checked.
    """
    step = "Data file"
    if problem := _unreadable(path):
        remedy = "Put the file there, or write its path into node.env as DATASET_PATH."
        return None, [Finding(step, "wrong", f"{path} {problem}.", remedy)]
    try:
        dataset = load_dataset(str(path))
    except DatasetError:
        return None, _bad_rows(path)
    except Exception as error:  # whatever a parser raises may quote the file
        message = f"{path} cannot be loaded ({type(error).__name__})."
        return None, [Finding(step, "wrong", message, _details(path))]
    findings = []
    if count := sum(dataset.skipped.values()):
        reasons = "; ".join(f"{n} x {reason}" for reason, n in dataset.skipped.items())
        message = f"{count} answer(s) are left out: {reasons}."
        findings.append(Finding(step, "warning", message, _details(path)))
    else:
        findings.append(Finding(step, "ok", f"{path} loads without a problem."))
    if group is not None:
        findings += _group(dataset, group, path)
    return dataset, findings


def _unreadable(path: Path) -> str:
    if not path.exists():
        return "does not exist, or its folder may not be entered"
    if not path.is_file():
        return "is not a file"
    if path.suffix.lower() not in FORMATS:
        return f"has none of the known endings ({', '.join(FORMATS)})"
    try:
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _details(path: Path) -> str:
    return f"`pluralllm data check '{path}'` shows every problem, on this machine alone."


def _bad_rows(path: Path) -> list[Finding]:
    """Name reasons and line numbers; the rest of a message may quote the row."""
    try:
        report = check_file(path)
    except DatasetError:
        report = CheckReport(str(path), "")
    places: dict[str, list[int]] = {}
    for line, text in report.problems:
        if line:
            places.setdefault(text.partition("; ")[0], []).append(line)
    reasons = [f"{reason} ({_lines(report.unit, lines)})" for reason, lines in places.items()]
    what = "; ".join(reasons) or "it is empty, damaged, or its header is wrong"
    return [Finding("Data file", "wrong", f"{path} cannot be used: {what}.", _details(path))]


def _lines(unit: str, lines: Sequence[int]) -> str:
    listed = ", ".join(str(line) for line in lines[:_SHOWN])
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{unit}{'s' if len(lines) > 1 else ''} {listed}{more}"


def _group(dataset: PreferenceDataset, group: str, path: Path) -> list[Finding]:
    step = "Group"
    if group not in dataset.groups:
        alike = any(name.casefold() == group.casefold() for name in dataset.groups)
        hint = " One differs from it only in capital letters." if alike else ""
        message = f"None of the file's {len(dataset.groups)} group(s) is '{group}'.{hint}"
        remedy = (
            "Groups are named alike in the file and in node.env, where only the operator "
            f"changes the name. `pluralllm data check '{path}'` lists the file's groups."
        )
        return [Finding(step, "wrong", message, remedy)]
    count, context = len(dataset.groups[group]), int(default_run_config()["context-questions"])
    held = f"The file holds {count} question(s) of '{group}'"
    if count > context:
        findings = [Finding(step, "ok", f"{held}.")]
    else:
        message = f"{held}; the default context-questions = {context} needs {context + 1} or more."
        remedy = "Add answers, or ask the operator to set context-questions lower."
        findings = [Finding(step, "wrong", message, remedy)]
    if others := len(dataset.groups) - 1:
        message = f"The file also holds {others} other group(s)."
        remedy = "A node needs its own group only: leave the others' rows out of the file."
        findings.append(Finding(step, "warning", message, remedy))
    return findings


def check_embedding(
    folder: Path, dataset: PreferenceDataset, progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Embed the questions into the node's cache, so that its first round need not.

    Parameters
    ----------
    folder : Path
        The node's folder; the cache is its ``state/embeddings``.
    dataset : PreferenceDataset
    progress : callable, optional
        Called with (texts done, all texts).
    """
    from pluralllm_fl.workspace import text_embedder  # loads torch

    step, started = "Embedding", time.monotonic()
    cache = {"embedding-cache": str(folder / "state" / "embeddings")}
    config = RunConfig.default(cache)
    try:
        table = text_embedder(config).embed(dataset.questions, progress)
    except PluralLLMError as error:
        return [Finding(step, "wrong", str(error))]
    seconds = duration(time.monotonic() - started)
    message = f"{len(table.vectors)} options are embedded in state/embeddings ({seconds})."
    return [Finding(step, "ok", message)]
