"""Which option of a question a completion is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.inference import Pluralist
from pluralllm_fl.preferences import Question

# "B", "(B)", "B.", "B) No", "B: No": a capital letter, alone or set off from a text.
_LETTER = re.compile(r"\(?([A-Z])(?:\s*[).:]+\s*(.*))?", re.S)


def spoken(completion: Any) -> str:
    """Return the text of a completion, without space around it: of a conversation the last turn.

    Raises
    ------
    ConfigError
        For what is neither text nor a list of ``{"role", "content"}``.
    """
    if not isinstance(completion, str) and isinstance(completion, Sequence):
        last = completion[-1] if completion else {"content": ""}
        completion = last.get("content") if isinstance(last, Mapping) else last
    if not isinstance(completion, str):
        raise ConfigError(
            'A completion is a text or a list of {"role": …, "content": text}, '
            f"not {completion!r:.80}."
        )
    return completion.strip()


def stated_option(completion: str, options: Sequence[str]) -> int | None:
    """Return the index of the option that a completion states, None if it states none.

    1. It is the option's text, but for space around it; else but for capitals too.
    2. It is the option's capital letter, alone, as in ``(B)`` or ``B.``, or before that very
       option's text, as in ``B. No``. A letter beyond the options, or before another text, states
       none: "C" of two options is not an answer.

    >>> [stated_option(text, ["Yes", "No"]) for text in ("No", "b", "B", "(A) Yes", "A. No", "C")]
    [1, None, 1, 0, None, None]
    """
    bare = [option.strip() for option in options]
    if completion in bare:
        return bare.index(completion)
    folded = [option.casefold() for option in bare]
    if folded.count(completion.casefold()) == 1:
        return folded.index(completion.casefold())
    letter = _LETTER.fullmatch(completion)
    if letter is None:
        return None
    index, rest = ord(letter[1]) - ord("A"), (letter[2] or "").strip()
    if index >= len(options) or rest.casefold() not in ("", folded[index]):
        return None
    return index


@torch.no_grad()
def nearest_options(pluralist: Pluralist, pairs: Sequence[tuple[Question, str]]) -> list[int]:
    """Return the option nearest to each completion: by the cosine of their embeddings.

    Parameters
    ----------
    pairs : sequence of (Question, str)
        A completion, not empty, beside its question. All are embedded in one pass.

    Notes
    -----
    The vectors are those of the options' side of the embedding template. A language model that
    sees little but topic and wording puts "not tea" near "tea": look at the matches before you
    train on them.
    """
    sets = [Question(question.text, (said, *question.options)) for question, said in pairs]
    batch = pluralist.batch(sets)
    dimension = pluralist.predictor.config.dimension
    vectors = batch.pad(F.normalize(batch.embedding[:, -dimension:], dim=1))  # (Q, longest, dim)
    cosine = (vectors[:, 1:] @ vectors[:, :1].mT)[..., 0]  # (Q, longest - 1)
    return cosine.masked_fill(~batch.mask[:, 1:], -torch.inf).argmax(dim=1).tolist()
