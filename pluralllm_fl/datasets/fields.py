"""Cells of a row -> checked values; what cannot be used raises BadRow with reason and remedy."""

import json
import re
import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pluralllm_fl.datasets.globalopinionqa import Repeated, literal, mapping_of
from pluralllm_fl.errors import nearest

Row = Mapping[str, Any]
COLUMNS = (
    *("group", "question", "options", "distribution", "counts", "choice"),
    *("offered", "ordinal", "topic", "source", "weight", "respondent"),
    *("prompt", "chosen", "rejected"),
    *("responses", "scores", "score_temperature", "ranking", "selections"),
)
_SPACES = re.compile("[\u00a0\u2007\u202f]")  # that no line breaks at
_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")  # zero width, and without any meaning
_SHORT = reprlib.Repr()  # shows any value, however long or deep, in one short piece
_SHORT.maxstring = _SHORT.maxother = 60
_MAPPING = re.compile(
    r"\s*(?:defaultdict\(\s*<class '[\w.]+'>\s*,\s*(\{.*\})\s*\)|(\{.*\}))\s*", re.S
)


def shown(value: object) -> str:
    return _SHORT.repr(value)


class BadRow(Exception):  # noqa: N818 - a finding to report, not a failure of the program
    """Why a row cannot be used: a reason worth counting, and how to mend this one."""

    def __init__(self, reason: str, remedy: str) -> None:
        text = f"{reason}; {remedy}"
        super().__init__(text.encode(errors="backslashreplace").decode())
        self.reason = reason


def read_selections(value: object) -> Mapping[Any, Any]:
    """Read the text of a Python defaultdict (or dict) of group -> shares, executing nothing."""
    if isinstance(value, Mapping):
        return value
    match = _MAPPING.fullmatch(value) if isinstance(value, str) else None
    if match:
        parsed = _python(match[1] or match[2])
        if isinstance(parsed, dict):
            return parsed
    raise BadRow(
        "selections cannot be read",
        "write \"defaultdict(<class 'list'>, {'Group': [0.4, 0.6]})\", as in the original file",
    )


def _python(text: str) -> object:
    if '"' not in text and "\\" not in text:  # then only the quotes differ from JSON: 10x faster
        try:
            return json.loads(text.replace("'", '"'), object_pairs_hook=mapping_of)
        except (ValueError, RecursionError):
            pass
    return literal(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a JSON object that holds a key twice (`object_pairs_hook` of the json module)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, value in mapping_of(pairs).items() if value is Repeated.TWICE)
        raise BadRow("a key appears twice", f"{shown(twice)}; keep the value that is right")
    return found


from_json = json.JSONDecoder(object_pairs_hook=_unique_keys).decode  # made once: twice as fast


@lru_cache(maxsize=4096)
def decoded(text: str) -> object:
    """Value of JSON or else Python-literal text (list columns of CSV files)."""
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return _python(text.strip())


def sequence_of(value: object, column: str) -> Sequence[Any]:
    found = decoded(value) if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        example = '["a", "b"]' if column in ("options", "offered", "responses") else "[0.4, 0.6]"
        raise BadRow(f"'{column}' is not a list", f"got {shown(value)}; write it as {example}")
    return found


def options_of(row: Row, column: str) -> tuple[str, ...]:
    if row.get(column) is None:
        raise BadRow(f"no '{column}'", f"give the list of answers in column '{column}'")
    return checked_options(_texts(row[column], column))


def _texts(value: object, column: str) -> tuple[str, ...]:
    values = tuple(sequence_of(value, column))
    if any(type(v) is not str for v in values):  # a scale such as [1, 2, 3] is fine
        values = tuple(
            _bounded(str, v) if type(v) in (int, float) else text_of({column: v}, column)
            for v in values
        )
    return values


def offered_of(row: Row, options: tuple[str, ...], amounts: Sequence[float]) -> tuple[bool, ...]:
    """Which options a row states as offered, by their texts, never by index.

    `amounts` are the row's shares or counts of the options.
    """
    listed = {visible(text) for text in _texts(row["offered"], "offered")}
    if unknown := sorted(listed - {visible(option) for option in options}):
        raise BadRow(
            "'offered' lists what is none of the options",
            f"got {shown(unknown[0])}; list texts out of 'options' (an index is not one)",
        )
    if len(listed) < 2:
        raise BadRow(
            "fewer than two options offered",
            f"'offered' lists {len(listed)}; leave the row out, or list all that could be chosen",
        )
    offered = tuple(visible(option) in listed for option in options)
    for option, held, amount in zip(options, offered, amounts, strict=True):
        if amount and not held:
            raise BadRow(
                "an answer that was not offered",
                f"{shown(option)} was chosen but is missing in 'offered'; add it there",
            )
    return offered


@lru_cache(maxsize=4096)
def checked_options(options: tuple[str, ...]) -> tuple[str, ...]:
    options = tuple(text_of({"an option": option}, "an option") for option in options)
    if len(options) < 2:
        raise BadRow("fewer than two options", f"a question needs at least 2, got {len(options)}")
    bare = [visible(option) for option in options]
    if len(set(bare)) < len(bare):
        twice = next(option for option in bare if bare.count(option) > 1)
        raise BadRow("duplicate options", f"{shown(twice)} appears more than once; name each once")
    return options


def plain(text: str) -> str:
    """One form of a text for all that look alike: NFC, plain spaces, no zero-width characters.

    Joiners stay, as they have a meaning in some scripts and in emoji.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", _SPACES.sub(" ", text)))


@lru_cache(maxsize=4096)
def visible(text: str) -> str:
    """Return what a reader sees of a text: without joiners, direction marks and outer spaces."""
    if text.isascii():
        return text.strip()
    return "".join(c for c in plain(text) if unicodedata.category(c) != "Cf").strip()


def group_of(row: Row) -> str:
    value = row.get("group")
    if type(value) is int:  # hub data often number their annotators
        return _bounded(str, value)
    return named_group(text_of(row, "group").strip())


def named_group(name: str) -> str:
    """Refuse names that no list of groups in a run config could hold."""
    if ";" in name:
        raise BadRow("';' in a group name", "lists of groups are separated by ';': rename it")
    return name


def _bounded(convert: Callable[[Any], str], value: object) -> str:
    try:
        return convert(value)
    except ValueError as error:  # an integer of thousands of digits
        raise BadRow("number too large", "shorten it") from error


def text_of(row: Row, column: str, *, chat: bool = False) -> str:
    value = row.get(column)
    if type(value) is str and value.isascii() and value.strip():
        return value
    if chat and isinstance(value, list | tuple):
        value = _chat_text(value, column)
    if value is None:
        hint = nearest(column, [str(key) for key in row if key not in COLUMNS])
        raise BadRow(f"no '{column}'", f"give it as text.{hint}")
    if not isinstance(value, str):
        raise BadRow(f"'{column}' is not text", f"got {type(value).__name__}; write it in quotes")
    value = plain(value)
    if not value.strip():
        raise BadRow(f"'{column}' is empty", "give it some text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"'{column}' is not valid Unicode", "save the file as UTF-8") from error
    return value


def _chat_text(turns: Sequence[Any], column: str) -> str:
    """Text of a conversation: the content of a single turn, else one 'role: content' a line."""
    spoken = []
    for turn in turns:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, str):
            raise BadRow(
                f"'{column}' is not a conversation",
                'write text or a list of {"role": …, "content": …}',
            )
        spoken.append((str(turn.get("role", "user")), content))
    if len(spoken) == 1:
        return spoken[0][1]
    return "\n".join(f"{role}: {content}" for role, content in spoken)


def without_shared_turns(chosen: object, rejected: object) -> tuple[object, object]:
    """Cut the turns that two conversations begin with alike: they are the prompt again."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        return chosen, rejected
    shared = 0
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return chosen[shared:], rejected[shared:]


def label_of(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None or value == "":
        return ""
    if type(value) in (int, float):
        return _bounded(str, value)
    return text_of(row, column) if not isinstance(value, str) or value.strip() else ""
