"""Cells of a row -> checked values; what cannot be used raises BadRow with reason and remedy."""

import ast
import json
import math
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pluralllm_fl.errors import nearest

Row = Mapping[str, Any]
COLUMNS = (
    *("group", "question", "options", "distribution", "counts", "choice"),
    *("offered", "ordinal", "topic", "source", "weight", "prompt", "chosen", "rejected"),
    *("responses", "scores", "ranking", "selections"),
)
SUM_TOLERANCE = 0.01
_LARGEST = 1e15  # products and sums of accepted numbers stay finite
_SMALLEST_WEIGHT = 1e-9
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
        parsed = _literal(match[1] or match[2])
        if isinstance(parsed, dict):
            return parsed
    raise BadRow(
        "selections cannot be read",
        "write \"defaultdict(<class 'list'>, {'Group': [0.4, 0.6]})\", as in the original file",
    )


def _literal(text: str) -> object:
    """Value of a Python literal; None when it is none."""
    if '"' not in text and "\\" not in text:  # then only the quotes differ from JSON: 10x faster
        try:
            return json.loads(text.replace("'", '"'))
        except (ValueError, RecursionError):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in the data are no concern of the user
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


@lru_cache(maxsize=4096)
def _decoded(text: str) -> object:
    """Value of JSON or else Python-literal text (list columns of CSV files)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _literal(text.strip())


def sequence_of(value: object, column: str) -> Sequence[Any]:
    decoded = _decoded(value) if isinstance(value, str) else value
    if not isinstance(decoded, list | tuple):
        example = '["a", "b"]' if column in ("options", "offered", "responses") else "[0.4, 0.6]"
        raise BadRow(f"'{column}' is not a list", f"got {shown(value)}; write it as {example}")
    return decoded


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
    listed = {text.strip() for text in _texts(row["offered"], "offered")}
    if unknown := sorted(listed - {option.strip() for option in options}):
        raise BadRow(
            "'offered' lists what is none of the options",
            f"got {shown(unknown[0])}; list texts out of 'options' (an index is not one)",
        )
    if len(listed) < 2:
        raise BadRow(
            "fewer than two options offered",
            f"'offered' lists {len(listed)}; leave the row out, or list all that could be chosen",
        )
    offered = tuple(option.strip() in listed for option in options)
    for option, held, amount in zip(options, offered, amounts, strict=True):
        if amount and not held:
            raise BadRow(
                "an answer that was not offered",
                f"{shown(option)} was chosen but is missing in 'offered'; add it there",
            )
    return offered


@lru_cache(maxsize=4096)
def checked_options(options: tuple[str, ...]) -> tuple[str, ...]:
    for option in options:
        text_of({"an option": option}, "an option")
    if len(options) < 2:
        raise BadRow("fewer than two options", f"a question needs at least 2, got {len(options)}")
    bare = [option.strip() for option in options]
    if len(set(bare)) < len(bare):
        twice = next(option for option in bare if bare.count(option) > 1)
        raise BadRow("duplicate options", f"{shown(twice)} appears more than once; name each once")
    return options


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


def _number(value: object, column: str, *, signed: bool = False) -> float:
    if type(value) is not float and type(value) is not int:
        raise BadRow(f"'{column}' holds something other than numbers", f"got {shown(value)}")
    if value != value or not -_LARGEST <= value <= _LARGEST:
        raise BadRow(f"'{column}' holds NaN, Inf or a huge number", "give finite numbers")
    if value < 0 and not signed:
        raise BadRow(f"'{column}' holds a negative number", f"got {shown(value)}")
    return float(value) + 0.0


def numbers_of(
    values: Sequence[Any], size: int, column: str, *, signed: bool = False
) -> list[float]:
    if len(values) != size:
        raise BadRow(
            f"'{column}' and the options differ in length",
            f"{len(values)} numbers for {size} options",
        )
    return [_number(value, column, signed=signed) for value in values]


def distribution_of(values: Sequence[Any], size: int) -> tuple[float, ...]:
    numbers = numbers_of(values, size, "distribution")
    total = math.fsum(numbers)
    if total == 0:
        raise BadRow("all probabilities are zero", "leave the row out or give the answers")
    if abs(total - 1) > SUM_TOLERANCE + 1e-9:
        raise BadRow(
            "probabilities do not sum to 1",
            f"they sum to {total:.6g}; rescale them, or name the column 'counts'",
        )
    return tuple(number / total for number in numbers)


def counts_of(values: Sequence[Any], size: int, weight: float) -> tuple[float, ...]:
    amounts = tuple(weight * number for number in numbers_of(values, size, "counts"))
    if math.fsum(amounts) == 0:
        raise BadRow("all counts are zero", "leave the row out or give the answers")
    return amounts


def choice_of(value: object, options: tuple[str, ...]) -> int:
    """Index of the chosen option. Text that is an option wins over text that is a number."""
    if isinstance(value, str):
        if value in options:
            return options.index(value)
        bare = value.strip()
        matches = [i for i, option in enumerate(options) if option.strip() == bare]
        if matches:
            return matches[0]
        index = int(bare) if re.fullmatch(r"[0-9]{1,6}", bare) else -1
    elif type(value) is int or (type(value) is float and value.is_integer()):
        index = int(value)
    else:
        index = -1
    if not 0 <= index < len(options):
        raise BadRow(
            "choice is none of the options",
            f"got {shown(value)}; give an option's text or its index 0 to {len(options) - 1}",
        )
    return index


def weight_of(row: Row) -> float:
    value = row.get("weight")
    if value is None or value == "":
        return 1.0
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRow("'weight' is not a number", f"got {shown(value)}") from None
    weight = _number(value, "weight")
    if weight < _SMALLEST_WEIGHT:
        raise BadRow("weight is not positive", f"got {weight:g}; leave such rows out")
    return weight


def ordinal_of(value: object, size: int) -> tuple[float, ...] | None:
    if isinstance(value, str):
        value = {"true": True, "false": False, "": None}.get(value.strip().lower(), value)
    if value is None or value is False:
        return None
    if value is True:
        return tuple(float(i) for i in range(size))
    positions = numbers_of(sequence_of(value, "ordinal"), size, "ordinal", signed=True)
    if len(set(positions)) == 1:
        raise BadRow("ordinal positions are all equal", "give the options' places on the scale")
    return tuple(positions)
