"""What the align commands share: a run and a policy opened, progress, the end."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pluralllm_fl.cli.console import labelled, output, progress_bar
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.runs.lookup import resolve_run
from pluralllm_fl.runs.progress import duration

if TYPE_CHECKING:
    from pluralllm_fl.alignment.policy import Policy
    from pluralllm_fl.alignment.targets import Subject
    from pluralllm_fl.alignment.training import Aligned, OnStep, Training


@dataclass(frozen=True)
class Work:
    """What a command opened, and how it trains."""

    run: Path
    output: Path
    subject: "Subject"
    policy: "Policy"
    training: "Training"
    chat: bool | None
    started: float


def opened(
    run: Path, source: str, folder: Path, groups: str, context_questions: int, plain: bool,
    device: str, **settings: Any,
) -> Work:  # fmt: skip
    """Check what is cheap to check, then open run and policy; `settings` are `Training`'s."""
    from pluralllm_fl.alignment.policy import load_policy, require_align
    from pluralllm_fl.alignment.targets import open_subject
    from pluralllm_fl.alignment.training import Training

    training = Training(**settings)
    started = time.monotonic()
    require_align()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: name a new folder as --output.")
    place = resolve_run(run)
    subject = open_subject(place, groups, context_questions)
    policy = load_policy(source, device)
    return Work(
        place, folder.resolve(), subject, policy, training, False if plain else None, started
    )


def finish(
    work: Work,
    aligned: "Aligned",
    method: str,
    how: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Save the policy with its record, and say what was done."""
    from pluralllm_fl.alignment.policy import RECORD, save_policy

    seconds = time.monotonic() - work.started
    record = {"method": method, **how, **_record(work), "seconds": round(seconds, 1)}
    record["history"] = [
        {key: entry[key] for key in ("step", "loss", "reward") if key in entry}
        for entry in aligned.history
    ]
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    save_policy(aligned.policy, work.output, {RECORD: text.encode(), **(files or {})})
    console, subject = output(), work.subject
    labelled(console, "groups", "; ".join(subject.groups))
    labelled(console, "questions", f"{len(subject.questions)} that the run trained on")
    if subject.left_out:
        labelled(console, "left out", f"{subject.left_out} with more options than letters")
    measure = "reward" if method == "grpo" else "loss"
    values = [entry[measure] for entry in aligned.history if measure in entry]
    tenth = max(1, len(values) // 10)
    labelled(
        console, measure,
        f"{fmean(values[:tenth]):.3f} in the first, {fmean(values[-tenth:]):.3f} in the last "
        f"{tenth} of {len(values)} steps",
    )  # fmt: skip
    labelled(console, "time", duration(seconds))
    labelled(console, "written", work.output)


def _record(work: Work) -> dict[str, Any]:
    from pluralllm_fl import __version__
    from pluralllm_fl.alignment.prompts import Prompts

    config, dataset = work.subject.workspace.config, work.subject.workspace.dataset
    libraries = ("torch", "transformers", "trl", "peft")
    return {
        "policy": work.policy.source,
        "chat": Prompts.of(work.policy, work.chat).chat,
        "run": str(work.run),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "groups": list(work.subject.groups),
        "context_questions": config.context_questions,
        "questions": len(work.subject.questions),
        "questions_left_out": work.subject.left_out,
        "training": asdict(work.training),
        "device": str(work.policy.model.device),
        "versions": {
            "pluralllm-fl": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
    }


@contextmanager
def progress(steps: int) -> Iterator["OnStep"]:
    """Show a bar with the loss on a terminal; elsewhere nothing, and never what TRL prints."""
    from pluralllm_fl.alignment.training import quiet

    with progress_bar() as bar:
        task = bar.add_task("training", total=steps)

        def on_step(step: int, logs: Mapping[str, float]) -> None:
            shown = "reward" if "reward" in logs else "loss"
            bar.update(task, completed=step, description=f"{shown} {logs[shown]:.3f}")

        with quiet():
            yield on_step
