"""Arrays that a node sent, read with distrust: names, shapes, dtypes, then values."""

import io
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from pluralllm_fl.arrays import Arrays


class BadReply(Exception):  # noqa: N818 - a verdict on a reply, not an error of the program
    """A reply that must not be aggregated, with the reason."""


class Layout(NamedTuple):
    """Shape and dtype that an array must have."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def layout_of(arrays: Arrays) -> dict[str, Layout]:
    """Return shape and dtype of every array, which may have any shape."""
    return {name: Layout(value.shape, value.dtype) for name, value in arrays.items()}


def read_arrays(record: ArrayRecord, expected: Mapping[str, Layout]) -> Arrays:
    """Return the arrays of a record, any shape that is expected, in the expected order.

    Raises
    ------
    BadReply
        For other names, shapes or dtypes, before memory is taken, and for NaN or infinite values.
    """
    _check_names(record, expected)
    return ordered({name: _array(name, record[name], expected[name]) for name in record}, expected)


def _array(name: str, array: Array, expected: Layout) -> NDArray[np.generic]:
    """Decode one array; memory is taken only for the expected shape and dtype."""
    try:
        shape, dtype = _header(array.data)
    except Exception as error:  # a node can send any bytes
        raise BadReply(f"arrays cannot be decoded ({error})") from None
    _check_layout(name, Layout(shape, dtype), expected)
    try:
        return np.asarray(array.numpy())
    except Exception as error:
        raise BadReply(f"arrays cannot be decoded ({error})") from None


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Return the shape and dtype that the bytes claim."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another format than numpy's 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    return shape, dtype


def ordered(arrays: Arrays, expected: Mapping[str, Layout]) -> Arrays:
    """Return the arrays, any shape that is expected, in the expected order.

    Every one is checked as `read_arrays` does.
    """
    _check_names(arrays, expected)
    for name, value in arrays.items():
        _check_layout(name, Layout(value.shape, value.dtype), expected[name])
        if not np.isfinite(value).all():
            raise BadReply(f"array {name} holds NaN or infinite values")
    return {name: arrays[name] for name in expected}


def _check_names(names: Iterable[str], expected: Mapping[str, Layout]) -> None:
    if odd := sorted(set(names) ^ set(expected)):
        raise BadReply(f"array names differ from the expected ones: {', '.join(odd[:5])}")


def _check_layout(name: str, found: Layout, expected: Layout) -> None:
    if found.shape != expected.shape:
        raise BadReply(f"array {name} has shape {found.shape} instead of {expected.shape}")
    if found.dtype != expected.dtype:
        raise BadReply(f"array {name} has dtype {found.dtype} instead of {expected.dtype}")
