"""Best of n: of n answers of a policy, the one that a group is predicted to prefer.

It serves agreement: one answer that as many of the group as possible share. It trains nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluralllm_fl.alignment.answering import first_line, write
from pluralllm_fl.alignment.policy import Policy
from pluralllm_fl.alignment.prompts import Prompts
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.datasets.completions import stated_option
from pluralllm_fl.datasets.fields import BadRow, options_of, text_of
from pluralllm_fl.datasets.files import open_rows
from pluralllm_fl.errors import ConfigError, DatasetError
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.preferences import Question

SIZES = (1, 2, 4, 16)
FREE_TEXT_TOKENS = 64


def best_of_n(group: ConditionedGroup, question: str, candidates: Sequence[str]) -> str:
    """Return the candidate with the largest predicted share; repeated ones count once.

    Raises
    ------
    ConfigError
        If no candidate has a text.
    """
    texts = [text for text in dict.fromkeys(c.strip() for c in candidates) if text]
    if not texts:
        raise ConfigError(f"There is no candidate to pick from for '{question:.80}'.")
    if len(texts) == 1:
        return texts[0]
    return texts[int(group.predict(question, texts).argmax())]


def best_option(predicted: FloatArray, candidates: Sequence[int]) -> int:
    """Return the candidate with the largest share, the first of equal ones.

    `predicted` are the shares of the question's options, (options,).
    """
    return max(sorted(set(candidates)), key=lambda option: predicted[option])


def pick_distribution(policy: FloatArray, predicted: FloatArray, n: int) -> FloatArray:
    """Return how the pick of n independent answers is distributed, exactly.

    The pick is one of the r worst options if all n answers are: with F the policy's cumulative
    shares from the option predicted worst, its share is ``F_r^n − F_(r−1)^n``.

    Parameters
    ----------
    policy, predicted : ndarray, shape (options,)
        Shares of what the policy answers (scaled to sum 1), and of what the picker prefers.

    Returns
    -------
    ndarray, shape (options,)
        Shares of the picks.

    Raises
    ------
    ConfigError
        For n below 1.
    """
    require_candidates(n)
    worst_first = np.lexsort(
        (-np.arange(len(predicted)), predicted)
    )  # of equal ones the first wins
    share = policy[worst_first] / policy.sum()
    below = np.append(np.cumsum(share[:-1]), 1.0)
    found = np.empty(len(policy))
    found[worst_first] = np.diff(below**n, prepend=0.0)
    return found


def require_candidates(n: int) -> None:
    """Refuse to pick from nothing."""
    if n < 1:
        raise ConfigError(f"n = {n}: there must be at least one candidate to pick from.")


@dataclass(frozen=True)
class Prompted:
    """A prompt of a user's file; without options any text is an answer."""

    text: str
    options: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[Prompted]:
    """Read a file of prompts: JSON lines, CSV or Parquet with ``prompt`` and maybe ``options``.

    Raises
    ------
    DatasetError
        For a file or a row that cannot be read, naming its line.
    """
    file, found = open_rows(path), []
    for line, row in file.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            given = row.get("options") is not None
            options = options_of(row, "options") if given else ()
            found.append(Prompted(text_of(row, "prompt").strip(), options))
        except BadRow as bad:
            raise DatasetError(f"{path}, {file.unit or 'line '}{line}: {bad}.") from None
    if not found:
        raise DatasetError(f"{path} holds no prompt.")
    return found


def written_picks(
    policy: Policy,
    prompted: Sequence[Prompted],
    groups: Mapping[str, ConditionedGroup],
    n: int,
    *,
    seed: int = 0,
    chat: bool | None = None,
) -> Iterator[dict[str, Any]]:
    """Let the policy write n answers to each prompt, and yield each group's pick.

    Of a prompt with options the answers are those that state one; the others are left out. One
    that states none has the pick None.
    """
    require_candidates(n)
    prompts = Prompts.of(policy, chat)
    torch.manual_seed(seed)
    for prompt in prompted:
        if prompt.options:
            question = Question(prompt.text, prompt.options)
            texts = write(policy, prompts.encode(prompts.ask(question)), n)
            stated = [stated_option(first_line(text), prompt.options) for text in texts]
            candidates = [prompt.options[i] for i in stated if i is not None]
        else:
            free = [{"role": "user", "content": prompt.text}] if prompts.chat else prompt.text
            ids = prompts.encode(free)
            candidates = [t for t in write(policy, ids, n, FREE_TEXT_TOKENS) if t]
        for name, group in groups.items():
            yield {
                "group": name,
                "prompt": prompt.text,
                **({"options": list(prompt.options)} if prompt.options else {}),
                "candidates": candidates,
                "pick": _pick(group, prompt, candidates) if candidates else None,
            }


def _pick(group: ConditionedGroup, prompt: Prompted, candidates: Sequence[str]) -> str:
    if not prompt.options:
        return best_of_n(group, prompt.text, candidates)
    predicted = group.predict(prompt.text, prompt.options)
    places = [prompt.options.index(candidate) for candidate in candidates]
    return prompt.options[best_option(predicted, places)]
