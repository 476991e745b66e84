"""Encoded updates against torch's bfloat16, and odd values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.reading import layout_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES: list[tuple[int, ...]] = [(3, 100), (), (256,), (257,), (0,), (2, 1)]


def model(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": np.asarray(rng.normal(size=shape) * scale, dtype=np.float32)
        for i, shape in enumerate(SHAPES)
    }


def flat(arrays: Arrays) -> NDArray[np.float64]:
    return np.concatenate([arrays[k].ravel() for k in sorted(arrays)]).astype(np.float64)


def vector(values: list[float]) -> Arrays:
    return {"w": np.array(values, dtype=np.float32)}


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in arrays.items()}


def test_what_is_encoded_fits_the_layout_and_is_half_as_large() -> None:
    reference = model(0)
    encoded = rounding.encode(model(1), reference)
    assert layout_of(encoded) == rounding.layout(layout_of(reference))
    assert sum(v.nbytes for v in encoded.values()) * 2 == sum(v.nbytes for v in reference.values())


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_rounds_as_torch_does(values: list[float]) -> None:
    odd = [math.inf, -math.inf, math.nan, 0.0, -0.0, 3.4e38, 1e-45, 1.00390625, 1.01171875]
    update = vector(values + odd)
    zero = vector([0.0] * len(update["w"]))
    expected = torch.from_numpy(update["w"]).to(torch.bfloat16)
    decoded = rounding.decode(rounding.encode(update, zero), zero)["w"]
    np.testing.assert_array_equal(decoded, expected.float().numpy())


def test_error_is_relative_to_the_update() -> None:
    reference, step = model(0, 1e3), model(1, 1e-2)
    new = {k: np.asarray(v + step[k], dtype=np.float32) for k, v in reference.items()}  # type: ignore[operator]
    decoded = rounding.decode(rounding.encode(new, reference), reference)
    update, error = flat(new) - flat(reference), flat(decoded) - flat(new)
    last_bit = np.spacing(np.abs(flat(new)).astype(np.float32))
    assert (np.abs(error) <= np.abs(update) * 2.0**-8 + last_bit).all()


def test_result_is_the_same_in_any_order_of_names_and_for_any_memory_layout() -> None:
    new, reference = model(1), model(0)
    first = rounding.encode(new, reference)
    turned = {k: np.asfortranarray(v) for k, v in reversed(new.items())}
    assert bits(first) == bits(rounding.encode(turned, dict(reversed(reference.items()))))
    decoded = rounding.decode(first, reference)
    assert list(decoded) == list(reference)
    assert {k: v.shape for k, v in decoded.items()} == {k: v.shape for k, v in reference.items()}


def test_zero_update_is_exactly_nothing() -> None:
    reference = model(0)
    decoded = rounding.decode(rounding.encode(reference, reference), reference)
    assert bits(decoded) == bits(reference)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_arrives_as_not_finite(value: float) -> None:
    reference, diverged = model(0), model(1)
    diverged["layer3"] = diverged["layer3"].copy()
    diverged["layer3"][7] = value
    decoded = rounding.decode(rounding.encode(diverged, reference), reference)
    assert np.isfinite(decoded["layer3"]).sum() == 256
    assert not np.isfinite(decoded["layer3"][7])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e-45, 1e-38, float(np.finfo(np.float32).max) / 254])
def test_extremes_of_float32(value: float) -> None:
    new, reference = vector([value, -value]), vector([-value, value])
    decoded = rounding.decode(rounding.encode(new, reference), reference)["w"]
    np.testing.assert_allclose(decoded, new["w"], rtol=0.01, atol=1e-43)


def test_arrays_that_are_not_float32_travel_as_they_are() -> None:
    reference: Arrays = {"steps": np.array(3), "w": np.zeros(4, np.float32), "d": np.ones(2)}
    new: Arrays = {"steps": np.array(9), "w": np.ones(4, np.float32), "d": np.full(2, math.pi)}
    encoded = rounding.encode(new, reference)
    assert layout_of(encoded) == rounding.layout(layout_of(reference))
    decoded = rounding.decode(encoded, reference)
    assert {k: v.dtype for k, v in decoded.items()} == {k: v.dtype for k, v in new.items()}
    assert bits(decoded) == bits(new)


def test_a_model_without_float32_arrays() -> None:
    reference: Arrays = {"steps": np.array(3)}
    encoded = rounding.encode({"steps": np.array(4)}, reference)
    assert rounding.decode(encoded, reference)["steps"] == 4


@settings(max_examples=30)
@given(st.binary(min_size=40, max_size=40))
def test_any_bytes_of_the_right_layout_decode(data: bytes) -> None:
    reference = vector([1.0] * 20)
    ((name, (shape, kind)),) = rounding.layout(layout_of(reference)).items()
    encoded: Arrays = {name: np.frombuffer(data, kind).reshape(shape)}
    assert rounding.decode(encoded, reference)["w"].shape == (20,)
