"""An aligned policy, examined: beside its base, uniform and the predictor, group by group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluralllm_fl.alignment.answering import (
    Asked,
    LetterAnswer,
    debiased,
    letter_answers,
    written_answers,
)
from pluralllm_fl.alignment.measures import measure, summary
from pluralllm_fl.alignment.policy import Policy
from pluralllm_fl.alignment.sheets import (
    SPLITS,
    Kind,
    Sheet,
    draw_questions,
    shares_for_everyone,
    sheets,
)
from pluralllm_fl.alignment.targets import Subject
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.metrics import uniform_like
from pluralllm_fl.preferences import Question

Answers = dict[Asked, LetterAnswer]
Given = Callable[[Sheet], FloatArray]  # shares of a sheet's options, (N,)
OnAsk = Callable[[str, int, int], None]  # what is asked, prompts done, of so many
BASE, DEBIASED, POLICY = "base", "base, debiased", "policy"


@dataclass(frozen=True)
class Exam:
    """How a policy is examined.

    Parameters
    ----------
    questions : int
        Drawn of each kind: trained and new.
    orders : int
        Of the options of each question.
    samples : int
        Texts that the policy writes in each order; 0: only its letters are read.
    named : bool
        Whether prompts name the group; a control without follows.
    chat : bool or None
        How the policy is asked (`Prompts.of`).
    seed : int
        Draw of the questions and of the texts.
    """

    questions: int = 50
    orders: int = 4
    samples: int = 0
    named: bool = False
    chat: bool | None = None
    seed: int = 0


def evaluate(
    subject: Subject,
    policy: Policy,
    base: Policy | None,
    exam: Exam,
    on_ask: OnAsk = lambda _what, _done, _total: None,
) -> dict[str, Any]:
    """Examine a policy on the groups of a run.

    Parameters
    ----------
    base : Policy or None
        What the policy was before; None: the policy is itself the base.

    Returns
    -------
    dict
        ``cells``: one for each side and kind of questions that has groups, with ``rows``: for each
        kind of answers what `measures.summary` returns; those of a policy with ``divergence``, the
        KL from the base on the same prompts, and ``letters``, how likely a letter comes at all.
        ``stated``: the share of written texts that state an option; None if none was written.

    Raises
    ------
    ConfigError
        For settings below 1, a run without such questions, or a policy that cannot be asked.
    """
    drawn: dict[Kind, list[Question]] = {
        kind: draw_questions(subject.workspace, kind, exam.questions, exam.seed) for kind in SPLITS
    }
    papers = sheets(subject, drawn)
    asked = _prompts(papers, exam.named)

    def ask(who: Policy, what: str) -> Answers:
        found = letter_answers(
            who, asked, exam.orders, chat=exam.chat, on_batch=lambda *at: on_ask(what, *at)
        )
        return dict(zip(asked, found, strict=True))

    before = ask(base or policy, BASE)
    after = ask(policy, POLICY) if base is not None else None
    given = references(papers) | of_base(before, exam.named)
    letters = {BASE: before}
    if after is not None:
        given[POLICY] = _by_letters(after, exam.named)
        letters[POLICY] = after
        if exam.named:
            given[f"{POLICY}, no group named"] = _by_letters(after, named=False)
    stated = None
    if exam.samples:
        on_ask("texts", 0, 1)
        given[f"{POLICY if after else BASE}, as written"], stated = _written(policy, papers, exam)
    return {
        "stated": stated,
        "questions": {kind: len(found) for kind, found in drawn.items()},
        "cells": [
            _cell(side, kind, members, given, letters, exam.named)
            for side in ("seen", "unseen")
            for kind in SPLITS
            if (members := [s for s in papers if (s.side, s.kind) == (side, kind)])
        ],
    }


def _prompts(papers: Sequence[Sheet], named: bool) -> list[Asked]:
    """Return every prompt once: each question without a group, and for its groups if `named`."""
    found: dict[Asked, None] = {}
    for sheet in papers:
        for question in sheet.questions:
            found[question, None] = None
            if named:
                found[question, sheet.group] = None
    return list(found)


def references(papers: Sequence[Sheet]) -> dict[str, Given]:
    """Return the answers that a policy is compared with, by name."""
    shared = {kind: shares_for_everyone([s for s in papers if s.kind == kind]) for kind in SPLITS}
    return {
        "uniform": lambda sheet: uniform_like(sheet.question),
        "marginal": lambda sheet: sheet.marginal,
        "predictor": lambda sheet: sheet.predicted,
        "predictor, for all": lambda sheet: sheet.flat(shared[sheet.kind]),
    }


def of_base(before: Answers, named: bool) -> dict[str, Given]:
    """Return a base's answers by name: over the orders, in the first alone, and debiased."""
    alike = {key: answer for key, answer in before.items() if (key[1] is not None) == named}
    shares = dict(zip(alike, debiased(list(alike.values())), strict=True))
    first = {key: answer.first_order() for key, answer in alike.items()}
    return {
        BASE: _by_letters(alike, named),
        f"{BASE}, one order": _by_letters(first, named),
        DEBIASED: _by_prompt(shares, named),
    }


def _by_letters(answers: Mapping[Asked, LetterAnswer], named: bool) -> Given:
    return _by_prompt({key: answer.distribution for key, answer in answers.items()}, named)


def _by_prompt(shares: Mapping[Asked, FloatArray], named: bool) -> Given:
    """Answer a sheet with what the prompts for its group, or without one, got."""
    return lambda sheet: np.concatenate(
        [shares[q, sheet.group if named else None] for q in sheet.questions]
    )


def _written(policy: Policy, papers: Sequence[Sheet], exam: Exam) -> tuple[Given, float]:
    """Count what the policy writes; uniform where no text states an option."""
    asked = [key for key in _prompts(papers, exam.named) if exam.named == (key[1] is not None)]
    counts = written_answers(
        policy, asked, exam.samples, exam.orders, seed=exam.seed, chat=exam.chat
    )
    shares = {}
    for key, found in zip(asked, counts, strict=True):
        options = found[:-1] if found[:-1].any() else np.ones(len(found) - 1)
        shares[key] = options / options.sum()
    stated = 1 - sum(int(found[-1]) for found in counts) / sum(int(found.sum()) for found in counts)
    return _by_prompt(shares, exam.named), stated


def _cell(
    side: str,
    kind: Kind,
    members: Sequence[Sheet],
    given: Mapping[str, Given],
    letters: Mapping[str, Answers],
    named: bool,
) -> dict[str, Any]:
    values = {name: [measure(sheet, answer(sheet)) for sheet in members]
              for name, answer in given.items()}  # fmt: skip
    beside = {name: values[name] for name in ("uniform", DEBIASED)}
    rows = {name: summary(members, found, beside) for name, found in values.items()}
    for name, answers in letters.items():
        keys = [(q, s.group if named else None) for s in members for q in s.questions]
        rows[name] |= {
            "divergence": float(
                np.mean([answers[key].divergence(letters[BASE][key]) for key in keys])
            ),
            "letters": float(np.mean([answers[key].mass for key in keys])),
        }
    return {"side": side, "questions": kind, "groups": [s.group for s in members], "rows": rows}
