"""What a policy is trained towards: the answers that a finished run predicts for its groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from pluralllm_fl.alignment.aggregate import Rewards, log_mean, maximum, mean, minimum
from pluralllm_fl.alignment.prompts import nameable
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.config import split_names
from pluralllm_fl.errors import ConfigError, nearest
from pluralllm_fl.evaluation.opening import open_run, with_threads_of_run
from pluralllm_fl.evaluation.scores import context_and_targets
from pluralllm_fl.inference import ConditionedGroup, Pluralist
from pluralllm_fl.preferences import GroupPreferences, Question, QuestionSplit, question_split
from pluralllm_fl.workspace import Workspace

PER_GROUP = "per-group"
_POOLED = {"mean": mean, "minimum": minimum, "maximum": maximum, "log-mean": log_mean}


@dataclass(frozen=True)
class Target:
    """How a policy shall answer a question.

    Parameters
    ----------
    question : Question
    group : str or None
        Named in the prompt; None: the policy is asked without a group.
    distribution : ndarray, shape (options,)
        Shares, with sum 1.
    """

    question: Question
    group: str | None
    distribution: FloatArray


@dataclass(frozen=True)
class Subject:
    """A finished run's predictor, fitted to groups, and the questions to train a policy on.

    Parameters
    ----------
    workspace : Workspace
    groups : mapping of str to ConditionedGroup
    questions : tuple of Question
        Those that the run trained on, as far as letters go: never a validation or test question.
    left_out : int
        Trained questions with more options than there are letters.
    """

    workspace: Workspace
    groups: Mapping[str, ConditionedGroup]
    questions: tuple[Question, ...]
    left_out: int


@with_threads_of_run
def open_subject(run: Path, groups: str = "seen", context_questions: int = 20) -> Subject:
    """Open a finished run and fit its predictor to groups.

    Parameters
    ----------
    groups : str
        "seen", "all" or names, separated by ";".
    context_questions : int
        Answers that the predictor reads of each group: the same as in the run's own evaluation of
        new questions.

    Raises
    ------
    ArtefactError
        If the run or its model is missing or damaged.
    ConfigError
        For an unknown group, or one without enough answers.
    """
    workspace, _ = open_run(run, context_questions=context_questions)
    pluralist = Pluralist.from_pretrained(run, workspace.config.embedding_cache or None)
    fitted = {
        group: pluralist.fit(context_of(workspace, group)) for group in _chosen(workspace, groups)
    }
    trained = trained_questions(workspace)
    kept = tuple(filter(nameable, trained))
    if not kept:
        raise ConfigError(
            f"The run trained on {len(trained)} questions; none has at most "
            f"{len(ascii_uppercase)} options, so that letters could name them."
        )
    return Subject(workspace, fitted, kept, len(trained) - len(kept))


def context_of(workspace: Workspace, group: str) -> GroupPreferences:
    """Return the answers that the predictor reads of a group: a seeded draw of trained ones.

    Raises
    ------
    ConfigError
        If there is none.
    """
    config, table = workspace.config, workspace.table(group)
    index, _ = context_and_targets(table, "train", config.context_questions, config.seed)
    if not len(index):
        raise ConfigError(
            f"Group '{group}' has no answers to the questions that the run trained on. Leave the "
            "group out, or give it more answers."
        )
    held, questions = workspace.dataset.groups[group], [table.questions[i] for i in index]
    return GroupPreferences(
        group,
        {q: held.answers[q] for q in questions},
        offered={q: held.offered[q] for q in questions if q in held.offered},
    )


def trained_questions(workspace: Workspace) -> tuple[Question, ...]:
    """Return the training questions that a seen group answered, sorted by id."""
    return questions_of(workspace, workspace.seen, "train")


def questions_of(
    workspace: Workspace, groups: Sequence[str], split: QuestionSplit
) -> tuple[Question, ...]:
    """Return the questions of a split that any of the groups answered, sorted by id."""
    config = workspace.config
    answered = {q for group in groups for q in workspace.dataset.groups[group].answers}
    parts = config.seed, config.validation_fraction, config.test_fraction
    found = [q for q in answered if question_split(q, *parts) == split]
    return tuple(sorted(found, key=lambda q: q.id))


def predicted_targets(subject: Subject, aggregate: str = "mean") -> list[Target]:
    """Predict every trained question.

    Parameters
    ----------
    aggregate : str
        "per-group": one target a group and question, for a policy that is told the group. Else
        how the groups' predictions become one target a question (see `pooled`).
    """
    require_pooled(aggregate)
    asked = subject.questions
    predicted = {name: group.predict_proba(asked) for name, group in subject.groups.items()}
    if aggregate == PER_GROUP:
        return [
            Target(question, name, p)
            for name, found in predicted.items()
            for question, p in zip(asked, found, strict=True)
        ]
    return [
        Target(
            question, None, pooled({name: found[i] for name, found in predicted.items()}, aggregate)
        )
        for i, question in enumerate(asked)
    ]


def require_pooled(aggregate: str) -> None:
    """Refuse an aggregate that is none, or needs rewards over time."""
    if aggregate not in (known := (*_POOLED, PER_GROUP)):
        raise ConfigError(
            f"aggregate = '{aggregate}': distributions are pooled by {', '.join(known)}."
            f"{nearest(aggregate, known)}"
        )


def pooled(distributions: Mapping[str, FloatArray], aggregate: str) -> FloatArray:
    """Pool the groups' shares of one question's options, (options,) each, scaled to a sum of 1.

    "mean", "minimum" or "maximum" of each option's shares; "log-mean": their geometric mean, which
    is the optimum of the groups' mean log p with an entropy bonus of 1.
    """
    shares: Rewards = {group: p.tolist() for group, p in distributions.items()}
    weights: FloatArray = np.array(_POOLED[aggregate](shares), dtype=np.float64)
    if aggregate == "log-mean":
        weights = np.exp(weights)
    return weights / float(weights.sum())


def _chosen(workspace: Workspace, groups: str) -> Sequence[str]:
    if groups in ("seen", "all"):
        return workspace.seen if groups == "seen" else workspace.groups
    names = tuple(dict.fromkeys(split_names(groups)))
    if not names:
        raise ConfigError('Name groups as "A;B;…", or say "seen" or "all".')
    for name in names:
        if name not in workspace.dataset.groups:
            raise ConfigError(
                f"Unknown group '{name}'.{nearest(name, workspace.groups)} The run has: "
                f"{'; '.join(workspace.groups)}."
            )
    return names
