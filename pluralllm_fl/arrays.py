"""Types of numpy arrays, and what a model's may hold."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Arrays = dict[str, NDArray[np.generic]]  # a model's, or a part of it, by name

LARGEST = 1e9  # no training gets there; far beyond, a model predicts no finite numbers
TOO_LARGE = f"values beyond {LARGEST:.0e}"


def sound(array: NDArray[np.generic]) -> bool:
    """Whether every value is finite and of a size that a weight can have."""
    return bool((np.abs(array.astype(np.float64, copy=False)) <= LARGEST).all())
