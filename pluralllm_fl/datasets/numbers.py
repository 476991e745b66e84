"""Numbers of a row: choices, shares, counts, weights, positions; checked like other fields."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from pluralllm_fl.datasets.fields import BadRow, Row, decoded, sequence_of, shown, visible

# What a number in `choice` can be; "either": both, and they give different options.
Reading = Literal["", "option", "index", "either"]
SUM_TOLERANCE = 0.01
_LARGEST = 1e15  # products and sums of accepted numbers stay finite
_SMALLEST_WEIGHT = 1e-9
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
_ONE_BY_ONE = (
    "if people could choose several options, write each option as a question of its own, "
    "with the options Yes and No"
)


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
        index = places[value] if value in places else places.get(visible(value), -1)
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
    listed = decoded(value) if isinstance(value, str) and value.startswith("[") else value
    if isinstance(listed, list | tuple):
        return BadRow("'choice' is a list", f"give the text of one option; {_ONE_BY_ONE}")
    return BadRow(
        "choice is none of the options",
        f"got {shown(value)}; give an option's text or its index 0 to {len(options) - 1}",
    )


@lru_cache(maxsize=4096)
def _places(options: tuple[str, ...]) -> Mapping[str, int]:
    return {visible(option): i for i, option in enumerate(options)}


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
