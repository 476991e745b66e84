"""Which option of a question a completion is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pluralllm_fl.errors import ConfigError

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


def quoted_option(completion: str, options: Sequence[str]) -> int | None:
    """Return the index of the only option whose words a text contains, None if it is not one.

    Capitals do not count, nor does an option that only occurs inside a longer one ("good" in "very
    good"). Where the text speaks of several options, or says an option's words to deny them, this
    cannot tell: only the former is None.

    >>> [quoted_option(text, ["Yes", "No"]) for text in ("I think yes.", "No doubt: yes.", "Maybe")]
    [0, None, None]
    """
    text = completion.casefold()
    spans = [
        (match.start(), match.end(), index)
        for index, option in enumerate(options)
        for match in re.finditer(rf"(?<!\w){re.escape(option.casefold().strip(' .!'))}(?!\w)", text)
    ]
    found = {
        index
        for start, end, index in spans
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    }
    return found.pop() if len(found) == 1 else None
