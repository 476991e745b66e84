"""Types of numpy arrays, flat rows of questions, and what a model's arrays may hold.

Questions have different numbers of options. Their options lie one after another in flat arrays of
shape (N,), beside the number of options of every question: `size`, shape (Q,), with sum N. A
docstring that says (options,) means those of one question.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Arrays = dict[str, NDArray[np.generic]]  # a model's, or a part of it, by name

LARGEST = 1e9  # no training gets there; far beyond, a model predicts no finite numbers
TOO_LARGE = f"values beyond {LARGEST:.0e}"


def sound(array: NDArray[np.generic]) -> bool:
    """Whether every value, in any shape, is finite and of a size that a weight can have."""
    return bool((np.abs(array.astype(np.float64, copy=False)) <= LARGEST).all())


def owners(size: ArrayLike) -> IntArray:
    """Return the index of the question, 0..Q-1, that each option belongs to, shape (N,).

    >>> owners([2, 3])
    array([0, 0, 1, 1, 1])
    """
    counts = np.asarray(size, dtype=np.int64)
    return np.repeat(np.arange(len(counts)), counts)


def starts(size: ArrayLike) -> IntArray:
    """Return the place of each question's first option, shape (Q,).

    >>> starts([2, 3])
    array([0, 2])
    """
    counts = np.asarray(size, dtype=np.int64)
    return np.asarray(np.cumsum(counts) - counts)


def option_rows(first_row: IntArray, size: IntArray) -> IntArray:
    """Return the rows of all options, (N,), of questions whose options lie in consecutive rows.

    `first_row` and `size`, (Q,) each, say where a question begins and how many options it has.

    >>> option_rows(np.array([7, 0]), np.array([2, 3]))
    array([7, 8, 0, 1, 2])
    """
    return np.arange(size.sum()) + np.repeat(first_row - starts(size), size)
