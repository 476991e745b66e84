"""The align commands: a language model trained towards what a finished run predicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pluralllm_fl.cli.console import guarded
from pluralllm_fl.cli.policies import finish, opened, progress
from pluralllm_fl.cli.use import Run
from pluralllm_fl.errors import ConfigError

if TYPE_CHECKING:
    from pluralllm_fl.alignment.everyone import Aggregate, Reward
    from pluralllm_fl.alignment.targets import Subject

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
Pool = Annotated[
    Literal["mean", "minimum", "maximum", "log-mean", "per-group"],
    typer.Option(help="One policy for all groups, by such a pool; or one that is told the group."),
]
RewardPool = Literal[
    "mean", "minimum", "maximum", "log-mean", "history-weights", "fairness-switch", "per-group"
]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts of a step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the LoRA adapter.")]
Seed = Annotated[int, typer.Option(min=0, help="Adapter, order of prompts, sampling.")]
Plain = Annotated[bool, typer.Option("--plain", help="Ask without the chat template.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Verbose = Annotated[bool, typer.Option(help="Show the traceback of errors.")]


@align.command()
@guarded
def sft(
    run: Run,
    policy: Source,
    output: Output,
    groups: Groups = "seen",
    context_questions: Context = 20,
    aggregate: Pool = "mean",
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
    from pluralllm_fl.alignment.targets import predicted_targets

    work = opened(
        run, policy, output, groups, context_questions, plain, device,
        steps=steps, batch=batch, learning_rate=learning_rate, rank=rank, seed=seed,
    )  # fmt: skip
    targets = predicted_targets(work.subject, aggregate)
    with progress(work.training.steps) as on_step:
        aligned = train(work.policy, targets, work.training, chat=work.chat, on_step=on_step)
    finish(work, aligned, "sft", {"aggregate": aggregate})


@align.command()
@guarded
def dpo(
    run: Run,
    policy: Source,
    output: Output,
    groups: Groups = "seen",
    context_questions: Context = 20,
    aggregate: Pool = "mean",
    beta: Annotated[float, typer.Option(min=1e-3, help="Weight of the KL to the base.")] = 0.1,
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
    from pluralllm_fl.alignment.targets import predicted_targets

    work = opened(
        run, policy, output, groups, context_questions, plain, device,
        steps=steps, batch=batch, learning_rate=learning_rate, rank=rank, seed=seed,
    )  # fmt: skip
    pairs = draw_pairs(
        predicted_targets(work.subject, aggregate), work.training.rows, work.training.seed
    )
    rows = lettered_rows(pairs, Prompts.of(work.policy, work.chat))
    with progress(work.training.steps) as on_step:
        aligned = train(work.policy, rows, work.training, beta=beta, on_step=on_step)
    files = {"pairs.jsonl": jsonl(text_rows(pairs))}
    finish(work, aligned, "dpo", {"aggregate": aggregate, "beta": beta}, files)


@align.command()
@guarded
def grpo(
    run: Run,
    policy: Source,
    output: Output,
    groups: Groups = "seen",
    context_questions: Context = 20,
    aggregate: Annotated[
        RewardPool,
        typer.Option(help="One policy for all groups, rewarded so; or one that is told the group."),
    ] = "mean",
    aim: Annotated[
        Literal["distribution", "agreement"],
        typer.Option(help="Answers that spread as the groups', or the one that most share."),
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
    work = opened(
        run, policy, output, groups, context_questions, plain, device,
        steps=steps, batch=batch, learning_rate=learning_rate, rank=rank, seed=seed,
    )  # fmt: skip
    asked = [*work.subject.groups] if aggregate == PER_GROUP else [None]
    prompts = Prompts.of(work.policy, work.chat)
    rows = survey_rows(
        prompts, work.subject.questions, asked, work.training.seed, work.training.rows
    )
    reward = _reward(work.subject, aim, aggregate)
    with progress(work.training.steps) as on_step:
        aligned = train(
            work.policy, rows, reward, work.training, generations=generations, on_step=on_step
        )
    finish(work, aligned, "grpo", {"aggregate": aggregate, "aim": aim, "generations": generations})


def _aggregates() -> Mapping[str, "Aggregate"]:
    from pluralllm_fl.alignment import aggregate as by

    return {
        "mean": by.mean, "minimum": by.minimum, "maximum": by.maximum, "log-mean": by.log_mean,
        "history-weights": by.HistoryWeights(), "fairness-switch": by.FairnessSwitch(),
    }  # fmt: skip


def _require_aim(aim: str, aggregate: str) -> None:
    if aim == "distribution" and aggregate in ("log-mean", "history-weights", "fairness-switch"):
        raise ConfigError(
            f"--aggregate {aggregate} needs rewards above 0; those of --aim distribution are "
            "differences. Use --aim agreement, or mean, minimum, maximum or per-group."
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
