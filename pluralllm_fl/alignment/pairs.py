"""Preference pairs out of predicted distributions, in TRL's format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

from pluralllm_fl.alignment.prompts import Prompts, shuffled
from pluralllm_fl.alignment.targets import Target
from pluralllm_fl.runs.artefacts import write_atomic

EVERYONE = "everyone"  # the group of pairs that are pooled over groups


class Pair(NamedTuple):
    """Of two options of a target's question, the one that is preferred.

    `order`: letter j stands for option ``order[j]``; `chosen` and `rejected` are letters' places.
    """

    target: Target
    order: list[int]
    chosen: int
    rejected: int

    def text(self, letter: int) -> str:
        """Return the option behind a letter's place."""
        return self.target.question.options[self.order[letter]]


def draw_pairs(targets: Sequence[Target], count: int, seed: int = 0) -> list[Pair]:
    """Draw pairs as Bradley and Terry: option i wins over j with probability p_i / (p_i + p_j).

    So over many draws the pairs say p, not only which option is the most popular one. Targets and
    the orders of options come as in `prompts.shuffled`, the two options uniformly.
    """
    rng = np.random.default_rng([seed, 1])
    found = []
    for place, order in shuffled([len(t.distribution) for t in targets], count, seed):
        first, second = rng.choice(len(order), size=2, replace=False).tolist()
        p, q = (targets[place].distribution[order[letter]] for letter in (first, second))
        wins = rng.random() * (p + q) < p if p + q > 0 else rng.random() < 0.5
        chosen, rejected = (first, second) if wins else (second, first)
        found.append(Pair(targets[place], order, chosen, rejected))
    return found


def lettered_rows(pairs: Sequence[Pair], prompts: Prompts) -> list[dict[str, Any]]:
    """Return rows for `DPOTrainer` in which the policy answers with letters."""
    return [
        {
            "prompt": prompts.ask(pair.target.question, pair.target.group, pair.order),
            "chosen": prompts.answer(ascii_uppercase[pair.chosen]),
            "rejected": prompts.answer(ascii_uppercase[pair.rejected]),
        }
        for pair in pairs
    ]


def text_rows(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Return rows in TRL's format with the options' texts: ``prompt``, ``chosen``, ``rejected``.

    With ``group`` beside them our loaders read them as questions of two options (docs/data.md).
    """
    return [
        {
            "prompt": pair.target.question.text,
            "chosen": pair.text(pair.chosen),
            "rejected": pair.text(pair.rejected),
            "group": EVERYONE if pair.target.group is None else pair.target.group,
        }
        for pair in pairs
    ]


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as the content of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Write `text_rows` as JSONL.

    Raises
    ------
    ArtefactError
        If the file cannot be written.
    """
    write_atomic(path, jsonl(text_rows(pairs)))
