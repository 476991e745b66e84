"""The align commands: a language model trained towards what a finished run predicts."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pluralllm_fl.cli.console import guarded, labelled, messages, output
from pluralllm_fl.cli.use import Run
from pluralllm_fl.errors import ConfigError, nearest
from pluralllm_fl.formats import duration
from pluralllm_fl.runs.lookup import resolve_run

if TYPE_CHECKING:
    from pluralllm_fl.alignment.everyone import Aggregate, Reward
    from pluralllm_fl.alignment.policy import Policy
    from pluralllm_fl.alignment.targets import Subject
    from pluralllm_fl.alignment.training import Aligned, OnStep, Training

align = typer.Typer(
    help="Train a language model towards what a run predicts for its groups.",
    no_args_is_help=True,
)

Source = Annotated[
    str, typer.Option("--policy", help="Language model: folder, .gguf file or hub id.")
]
Output = Annotated[Path, typer.Option(help="New folder for the trained policy.")]
Groups = Annotated[str, typer.Option(metavar='seen|all|"A;B;…"', help="Whose answers count.")]
Context = Annotated[int, typer.Option(min=1, help="Answers that are read of each group.")]
Pooled = Annotated[
    str,
    typer.Option(
        metavar="mean|minimum|maximum|log-mean|per-group",
        help="One policy for all groups, by such a pool; or one that is told the group.",
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts of a step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the LoRA adapter.")]
Seed = Annotated[int, typer.Option(min=0, help="Adapter, order of prompts, sampling.")]
Plain = Annotated[bool, typer.Option("--plain", help="Ask without the chat template.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Verbose = Annotated[bool, typer.Option(help="Show the traceback of errors.")]
Aim = Literal["distribution", "agreement"]


@dataclass(frozen=True)
class _Work:
    """What every command opens."""

    run: Path
    output: Path
    subject: "Subject"
    policy: "Policy"
    training: "Training"
    chat: bool | None
    started: float


@align.command()
@guarded
def sft(
    run: Run,
    policy: Source,
    output: Output,
    groups: Groups = "seen",
    context_questions: Context = 20,
    aggregate: Pooled = "mean",
    steps: Steps = 100,
    batch: Batch = 8,
    learning_rate: Rate = 3e-4,
    rank: Rank = 8,
    seed: Seed = 0,
    plain: Plain = False,
    device: Device = "auto",
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Distribution matching: the policy's answers spread as the predicted distribution."""
    from pluralllm_fl.alignment.sft import sft as train
    from pluralllm_fl.alignment.targets import predicted_targets, require_pooled

    require_pooled(aggregate)
    training = _training(steps, batch, learning_rate, rank, seed)
    work = _opened(run, policy, output, groups, context_questions, training, plain, device)
    targets = predicted_targets(work.subject, aggregate)
    with _progress(training.steps) as on_step:
        aligned = train(work.policy, targets, training, chat=work.chat, on_step=on_step)
    _finish(work, aligned, "sft", {"aggregate": aggregate})


@align.command()
@guarded
def dpo(
    run: Run,
    policy: Source,
    output: Output,
    groups: Groups = "seen",
    context_questions: Context = 20,
    aggregate: Pooled = "mean",
    beta: Annotated[float, typer.Option(help="Weight of the KL to the base.")] = 0.1,
    steps: Steps = 100,
    batch: Batch = 8,
    learning_rate: Rate = 3e-4,
    rank: Rank = 8,
    seed: Seed = 0,
    plain: Plain = False,
    device: Device = "auto",
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Preference pairs, drawn from the predicted distributions: towards the popular answers.

    The pairs are written too, as pairs.jsonl with the options' texts.
    """
    from pluralllm_fl.alignment.dpo import dpo as train
    from pluralllm_fl.alignment.pairs import draw_pairs, jsonl, lettered_rows, text_rows
    from pluralllm_fl.alignment.prompts import Prompts
    from pluralllm_fl.alignment.targets import predicted_targets, require_pooled

    require_pooled(aggregate)
    training = _training(steps, batch, learning_rate, rank, seed)
    work = _opened(run, policy, output, groups, context_questions, training, plain, device)
    pairs = draw_pairs(predicted_targets(work.subject, aggregate), training.rows, training.seed)
    rows = lettered_rows(pairs, Prompts.of(work.policy, work.chat))
    with _progress(training.steps) as on_step:
        aligned = train(work.policy, rows, training, beta=beta, on_step=on_step)
    files = {"pairs.jsonl": jsonl(text_rows(pairs))}
    _finish(work, aligned, "dpo", {"aggregate": aggregate, "beta": beta}, files)


@align.command()
@guarded
def grpo(
    run: Run,
    policy: Source,
    output: Output,
    groups: Groups = "seen",
    context_questions: Context = 20,
    aggregate: Annotated[
        str,
        typer.Option(
            metavar="mean|minimum|maximum|log-mean|history-weights|fairness-switch|per-group",
            help="One policy for all groups, rewarded so; or one that is told the group.",
        ),
    ] = "mean",
    aim: Annotated[
        str,
        typer.Option(
            metavar="distribution|agreement", help="Answers that spread as the groups', or one."
        ),
    ] = "distribution",
    generations: Annotated[int, typer.Option(min=2, help="Completions of a prompt.")] = 8,
    steps: Steps = 100,
    batch: Batch = 4,
    learning_rate: Rate = 3e-4,
    rank: Rank = 8,
    seed: Seed = 0,
    plain: Plain = False,
    device: Device = "auto",
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Reinforcement learning: the predictor rewards what the policy samples."""
    from pluralllm_fl.alignment.grpo import grpo as train
    from pluralllm_fl.alignment.prompts import Prompts, survey_rows
    from pluralllm_fl.alignment.targets import PER_GROUP

    _require_aim(aim, aggregate)
    training = _training(steps, batch, learning_rate, rank, seed)
    work = _opened(run, policy, output, groups, context_questions, training, plain, device)
    asked = [*work.subject.groups] if aggregate == PER_GROUP else [None]
    prompts = Prompts.of(work.policy, work.chat)
    rows = survey_rows(prompts, work.subject.questions, asked, training.seed, training.rows)
    reward = _reward(work.subject, aim, aggregate)
    with _progress(training.steps) as on_step:
        aligned = train(
            work.policy, rows, reward, training, generations=generations, on_step=on_step
        )
    _finish(work, aligned, "grpo", {"aggregate": aggregate, "aim": aim, "generations": generations})


def _aggregates() -> Mapping[str, "Aggregate"]:
    from pluralllm_fl.alignment import aggregate as by

    return {
        "mean": by.mean, "minimum": by.minimum, "maximum": by.maximum, "log-mean": by.log_mean,
        "history-weights": by.HistoryWeights(), "fairness-switch": by.FairnessSwitch(),
    }  # fmt: skip


def _require_aim(aim: str, aggregate: str) -> None:
    from pluralllm_fl.alignment.targets import PER_GROUP

    if aim not in get_args(Aim):
        raise ConfigError(f"aim = '{aim}': must be one of {', '.join(get_args(Aim))}.")
    if aggregate not in (known := (*_aggregates(), PER_GROUP)):
        raise ConfigError(
            f"aggregate = '{aggregate}': must be one of {', '.join(known)}."
            f"{nearest(aggregate, known)}"
        )
    if aim == "distribution" and aggregate in ("log-mean", "history-weights", "fairness-switch"):
        raise ConfigError(
            f"aggregate = '{aggregate}' needs rewards above 0; those of aim = 'distribution' are "
            "differences. Use aim = 'agreement', or mean, minimum, maximum or per-group."
        )


def _reward(subject: "Subject", aim: str, aggregate: str) -> "Reward":
    """Return a reward of p (agreement) or the deficit; another text than an option is worst."""
    from pluralllm_fl.alignment.everyone import as_shares, for_everyone
    from pluralllm_fl.alignment.targets import PER_GROUP
    from pluralllm_fl.reward import PluralisticReward

    reward: Reward
    if aim == "agreement":
        reward = as_shares(PluralisticReward(subject.groups, "likelihood", unmatched=-10.0))
    else:
        reward = PluralisticReward(subject.groups, "deficit", unmatched=-1.0)
    if aggregate == PER_GROUP:
        return reward
    return for_everyone(reward, list(subject.groups), _aggregates()[aggregate])


def _training(steps: int, batch: int, rate: float, rank: int, seed: int) -> "Training":
    from pluralllm_fl.alignment.training import Training

    return Training(steps, batch, rate, rank, seed)


def _opened(
    run: Path, source: str, folder: Path, groups: str, context_questions: int,
    training: "Training", plain: bool, device: str,
) -> _Work:  # fmt: skip
    """Check what is cheap to check, then open run and policy."""
    from pluralllm_fl.alignment.policy import load_policy, require_align
    from pluralllm_fl.alignment.targets import open_subject

    started = time.monotonic()
    require_align()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: name a new folder as --output.")
    place = resolve_run(run)
    policy = load_policy(source, device)
    subject = open_subject(place, groups, context_questions)
    return _Work(
        place, folder.resolve(), subject, policy, training, False if plain else None, started
    )


def _finish(
    work: _Work,
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
        f"{np.mean(values[:tenth]):.3f} in the first, {np.mean(values[-tenth:]):.3f} in the last "
        f"{tenth} of {len(values)} steps",
    )  # fmt: skip
    labelled(console, "time", duration(seconds))
    labelled(console, "written", work.output)


def _record(work: _Work) -> dict[str, Any]:
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
def _progress(steps: int) -> Iterator["OnStep"]:
    """Show a bar with the loss on a terminal; elsewhere nothing, and never what TRL prints."""
    from pluralllm_fl.alignment.training import quiet

    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("training", total=steps)

        def on_step(step: int, logs: Mapping[str, float]) -> None:
            shown = "reward" if "reward" in logs else "loss"
            bar.update(task, completed=step, description=f"{shown} {logs[shown]:.3f}")

        with quiet():
            yield on_step
