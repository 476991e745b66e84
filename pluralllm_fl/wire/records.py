"""Arrays and records: numpy <-> Flower, sizes in bytes, and global seeding."""

import contextlib
import hashlib
import math
import random
from collections.abc import Iterator, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from pluralllm_fl.arrays import Arrays


def to_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return the arrays, any shape, as a Flower record, in the order of the mapping."""
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def to_arrays(record: ArrayRecord) -> Arrays:
    """Return a Flower record's arrays, any shape, by name and in its order."""
    return {name: np.asarray(array.numpy()) for name, array in record.items()}


def count_bytes(content: RecordDict) -> int:
    """Return the payload size of a message: array data and names, 8 bytes a number, texts.

    Flower's framing (headers, protobuf tags) adds about 1% to a model of 1 MB.
    """
    return sum(record.count_bytes() for record in content.values())


def update_norms(new: Arrays, reference: Arrays) -> dict[str, float]:
    """Return the L2 norm of ``new - reference`` of every array by name, in float64.

    Arrays may have any shape, the same in both; the norm is that of all values: ``√Σ (a − b)²``.
    """
    norms = {}
    for name, value in new.items():
        difference = np.subtract(value, reference[name], dtype=np.float64)
        norms[name] = math.sqrt(float(np.vdot(difference, difference)))
    return norms


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed the global generators of `random` and numpy from ``parts``; restore them after.

    Stock strategies draw from the global generators, which Flower's own threads also use.
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "big"))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
