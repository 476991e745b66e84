"""Cells of a row -> checked values; what cannot be used raises BadRow with reason and remedy."""

import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from pluralllm_fl.datasets.globalopinionqa import Repeated, literal, mapping_of
from pluralllm_fl.errors import nearest

Row = Mapping[str, Any]
# What a number in `choice` can be; "either": both, and they give different options.
Reading = Literal["", "option", "index", "either"]
COLUMNS = (
    *("group", "question", "options", "distribution", "counts", "choice"),
    *("offered", "ordinal", "topic", "source", "weight", "respondent"),
    *("prompt", "chosen", "rejected"),
    *("responses", "scores", "score_temperature", "ranking", "selections"),
)
SUM_TOLERANCE = 0.01
_LARGEST = 1e15  # products and sums of accepted numbers stay finite
_SMALLEST_WEIGHT = 1e-9
_SPACES = re.compile("[\u00a0\u2007\u202f]")  # that no line breaks at
_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")  # zero width, and without any meaning
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
_ONE_BY_ONE = (
    "if people could choose several options, write each option as a question of its own, "
    "with the options Yes and No"
)
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
def _decoded(text: str) -> object:
    """Value of JSON or else Python-literal text (list columns of CSV files)."""
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return _python(text.strip())


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
    listed = {_visible(text) for text in _texts(row["offered"], "offered")}
    if unknown := sorted(listed - {_visible(option) for option in options}):
        raise BadRow(
            "'offered' lists what is none of the options",
            f"got {shown(unknown[0])}; list texts out of 'options' (an index is not one)",
        )
    if len(listed) < 2:
        raise BadRow(
            "fewer than two options offered",
            f"'offered' lists {len(listed)}; leave the row out, or list all that could be chosen",
        )
    offered = tuple(_visible(option) in listed for option in options)
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
    bare = [_visible(option) for option in options]
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
def _visible(text: str) -> str:
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


def _number(value: object, column: str, *, signed: bool = False) -> float:
    if type(value) is not float and type(value) is not int:
        raise BadRow(
            f"'{column}' holds something other than numbers",
            f"got {shown(value)}; write plain numbers, without quotes or units",
        )
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
            f"they sum to {total:.6g}; {_sum_remedy(numbers, total)}",
        )
    return tuple(number / total for number in numbers)


def _sum_remedy(numbers: Sequence[float], total: float) -> str:
    """Say what to do with shares that do not sum to 1, as far as they tell what they are."""
    if abs(total - 100) <= 100 * SUM_TOLERANCE:
        return "if they are percentages, divide each by 100"
    if total < 1:
        return "give the missing share, or divide each by their sum"
    if max(numbers) > 1 and all(number.is_integer() for number in numbers):
        return (
            "if they count people who chose one option each, name the column 'counts'; "
            + _ONE_BY_ONE
        )
    return f"{_ONE_BY_ONE}; else give shares that sum to 1"


def counts_of(values: Sequence[Any], size: int, weight: float) -> tuple[float, ...]:
    amounts = tuple(weight * number for number in numbers_of(values, size, "counts"))
    if math.fsum(amounts) == 0:
        raise BadRow("all counts are zero", "leave the row out or give the answers")
    return amounts


def choice_of(value: object, options: tuple[str, ...]) -> tuple[int, Reading]:
    """Index of the chosen option, and what the value can be.

    A text that is an option is that option, and so is a number. Any other number is an index.
    """
    places = _places(options)
    index = -1
    if isinstance(value, str):
        index = places[value] if value in places else places.get(_visible(value), -1)
    number = _numeric(value)
    if number is None:
        if index < 0:
            raise _no_option(value, options)
        return index, ""
    if index < 0:
        index = _numbered(options).get(number, -1)
    place = int(number) if number.is_integer() and 0 <= number < len(options) else -1
    if index < 0 and place < 0:
        raise _no_option(value, options)
    if index < 0:
        return place, "index"
    if place < 0:
        return index, "option"
    return index, "" if index == place else "either"


def _no_option(value: object, options: tuple[str, ...]) -> BadRow:
    listed = _decoded(value) if isinstance(value, str) and value.startswith("[") else value
    if isinstance(listed, list | tuple):
        return BadRow("'choice' is a list", f"give the text of one option; {_ONE_BY_ONE}")
    return BadRow(
        "choice is none of the options",
        f"got {shown(value)}; give an option's text or its index 0 to {len(options) - 1}",
    )


@lru_cache(maxsize=4096)
def _places(options: tuple[str, ...]) -> Mapping[str, int]:
    return {_visible(option): i for i, option in enumerate(options)}


@lru_cache(maxsize=4096)
def _numbered(options: tuple[str, ...]) -> Mapping[float, int]:
    """Places of the options that are numbers; two texts of one number are none."""
    values = [_numeric(option) for option in options]
    return {v: i for i, v in enumerate(values) if v is not None and values.count(v) == 1}


def _numeric(value: object) -> float | None:
    if isinstance(value, str):
        if value.isalpha():  # most options: spares the search
            return None
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if type(value) is int:
        return float(value) if abs(value) < _LARGEST else None
    return value if type(value) is float and math.isfinite(value) else None


def weight_of(row: Row) -> float:
    return _positive(row, "weight", 1.0)


def score_temperature_of(row: Row) -> float:
    """Return the declared difference of scores that makes a response e times as likely."""
    if row.get("score_temperature") in (None, ""):
        raise BadRow(
            "'scores' on an unknown scale",
            "say in 'score_temperature' how many points make a response 2.7 times as likely (1 "
            "if they are a reward model's logits; for ratings from 0 to 100 for example 20), or "
            "give 'ranking', which needs no scale",
        )
    return _positive(row, "score_temperature", 1.0)


def _positive(row: Row, column: str, default: float) -> float:
    value = row.get(column)
    if value is None or value == "":
        return default
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRow(f"'{column}' is not a number", f"got {shown(value)}") from None
    number = _number(value, column)
    if number < _SMALLEST_WEIGHT:
        remedy = "leave such rows out" if column == "weight" else "give a number above 0"
        raise BadRow(f"{column} is not positive", f"got {number:g}; {remedy}")
    return number


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
