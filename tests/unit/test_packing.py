"""Packed records: a round trip for any arrays, and refusal of what does not fit."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from pluralllm_fl.errors import FederationError
from pluralllm_fl.wire.packing import packed, unpacked
from pluralllm_fl.wire.records import count_bytes, to_arrays, to_record

any_array = st.sampled_from(["float32", "float64", "int8", "uint16", "int64", "bool"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(max_size=8), any_array, max_size=6))
def test_round_trip(values: dict[str, NDArray[np.generic]]) -> None:
    content = RecordDict({"arrays": to_record(values), "metrics": MetricRecord({"x": 1.5})})
    wire = packed(content)
    assert len(wire.array_records["arrays"]) == 1
    back = unpacked(wire)
    assert set(back) == {"arrays", "metrics"}
    result = to_arrays(back.array_records["arrays"])
    assert list(result) == list(values)
    for name, value in values.items():
        assert result[name].dtype == value.dtype
        assert result[name].shape == value.shape
        assert result[name].tobytes() == value.tobytes()


def test_records_that_are_not_packed_stay() -> None:
    content = RecordDict({"arrays": to_record({"a": np.zeros(3)}), "config": ConfigRecord()})
    assert unpacked(content) == content


def test_packing_costs_little() -> None:
    values = {f"layer.{i}": np.zeros((128, 64), np.float32) for i in range(40)}
    content = RecordDict({"arrays": to_record(values)})
    assert count_bytes(packed(content)) < 1.01 * sum(v.nbytes for v in values.values())


def wire() -> RecordDict:
    return packed(RecordDict({"arrays": to_record({"a": np.arange(6, dtype=np.float32)})}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shapes", ["7"]),
        ("shapes", ["5"]),
        ("shapes", ["-6"]),
        ("shapes", ["2,-3"]),
        ("shapes", ["99999999999,99999999999"]),
        ("shapes", ["six"]),
        ("shapes", []),
        ("shapes", [6]),
        ("dtypes", ["object"]),
        ("dtypes", ["float64"]),
        ("dtypes", "float32"),
        ("names", ["a", "b"]),
    ],
)
def test_layout_that_does_not_fit_is_refused(key: str, value: object) -> None:
    content = wire()
    content.config_records["layout/arrays"][key] = value  # type: ignore[assignment]
    with pytest.raises(FederationError, match="record 'arrays' cannot be unpacked"):
        unpacked(content)


@pytest.mark.parametrize(
    "array",
    [
        Array(np.zeros(6, np.float32)),
        Array(np.zeros((6, 4), np.uint8)),
        Array("uint8", (24,), "numpy.ndarray", b"no array"),
    ],
)
def test_bytes_that_are_none_are_refused(array: Array) -> None:
    content = wire()
    content["arrays"] = ArrayRecord({"packed": array})
    with pytest.raises(FederationError, match="cannot be unpacked"):
        unpacked(content)
