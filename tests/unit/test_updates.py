"""Encoded updates against naive references: rounding, error feedback, and odd values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pluralllm_fl.federation import updates
from pluralllm_fl.federation.records import Arrays

pytestmark = pytest.mark.fast

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
USUAL = st.floats(-1e3, 1e3, width=32)
SHAPES: list[tuple[int, ...]] = [(3, 100), (), (256,), (257,), (0,), (2, 1)]
WORD, SCALE, UPPER = "update/int8", "update/scales", "update/bfloat16"


def model(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": np.asarray(rng.normal(size=shape) * scale, dtype=np.float32)
        for i, shape in enumerate(SHAPES)
    }


def plus(left: Arrays, right: Arrays) -> Arrays:
    return {k: np.asarray(v + right[k], dtype=np.float32) for k, v in left.items()}  # type: ignore[operator]


def flat(arrays: Arrays) -> NDArray[np.float64]:
    return np.concatenate([arrays[k].ravel() for k in sorted(arrays)]).astype(np.float64)


def vector(values: list[float]) -> Arrays:
    return {"w": np.array(values, dtype=np.float32)}


def naive_int8(update: Arrays) -> tuple[list[int], list[np.float32]]:
    """Quantise number by number, with Python's integers and fractions of 127."""
    words, scales = [], []
    for name in sorted(update):
        values = [float(x) for x in update[name].ravel()]
        for start in range(0, len(values), 256):
            block = values[start : start + 256]
            scale = np.float32(max(map(abs, block)) / 127)
            scales.append(scale)
            for x in block:
                words.append(max(-127, min(127, round(x / float(scale)))) if scale else 0)
    return words, scales


@given(st.lists(FLOATS, min_size=1, max_size=600))
def test_int8_is_the_naive_quantisation(values: list[float]) -> None:
    new = vector(values)
    encoded, _ = updates.encode(new, vector([0.0] * len(values)), "int8")
    words, scales = naive_int8(new)
    assert encoded[WORD].tolist() == words
    assert encoded[SCALE].tobytes() == np.array(scales).tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_what_is_encoded_fits_the_layout_and_is_small(dtype: str) -> None:
    reference = model(0)
    encoded, _ = updates.encode(model(1), reference, dtype)
    found = {k: updates.Layout(v.shape, v.dtype) for k, v in encoded.items()}
    assert found == updates.layout(reference, dtype)
    big = {"w": np.zeros((300, 1000), np.float32), "b": np.zeros(300, np.float32)}
    whole = sum(v.nbytes for v in big.values())
    sent = sum(math.prod(s) * d.itemsize for s, d in updates.layout(big, dtype).values())
    assert sent / whole == pytest.approx({"bfloat16": 0.5, "int8": 0.25}[dtype], rel=0.03)


@given(st.lists(st.tuples(USUAL, USUAL), min_size=1, max_size=300))
def test_error_is_at_most_half_a_quantum(pairs: list[tuple[float, float]]) -> None:
    new, reference = (vector([pair[i] for pair in pairs]) for i in (0, 1))
    encoded, residual = updates.encode(new, reference, "int8")
    decoded = updates.decode(encoded, reference, "int8")
    error = flat(decoded) - flat(new)
    quantum = np.repeat(encoded[SCALE], [256, len(pairs) - 256] if len(pairs) > 256 else len(pairs))
    rounding = np.spacing(np.abs(decoded["w"]))  # the server's own addition
    assert (np.abs(error) <= quantum * 0.500001 + rounding + 1e-44).all()
    # 1e-12: the difference of two numbers below 1000 is itself rounded, in float64.
    np.testing.assert_allclose(residual, -error, rtol=1e-7, atol=1e-12)


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    odd = [math.inf, -math.inf, math.nan, 0.0, -0.0, 3.4e38, 1e-45, 1.00390625, 1.01171875]
    update = vector(values + odd)
    zero = vector([0.0] * len(update["w"]))
    encoded, residual = updates.encode(update, zero, "bfloat16")
    expected = torch.from_numpy(update["w"]).to(torch.bfloat16)
    decoded = updates.decode(encoded, zero, "bfloat16")["w"]
    np.testing.assert_array_equal(decoded, expected.float().numpy())
    assert residual.size == 0


def test_bfloat16_error_is_relative_to_the_update() -> None:
    reference = model(0, 1e3)
    new = plus(reference, model(1, 1e-2))
    encoded, _ = updates.encode(new, reference, "bfloat16")
    decoded = updates.decode(encoded, reference, "bfloat16")
    update, error = flat(new) - flat(reference), flat(decoded) - flat(new)
    rounding = np.spacing(np.abs(flat(new)).astype(np.float32))
    assert (np.abs(error) <= np.abs(update) * 2.0**-8 + rounding).all()


@settings(max_examples=10)
@given(st.integers(0, 2**20), st.integers(1, 40))
def test_with_error_feedback_the_sums_stay_within_one_quantum(seed: int, rounds: int) -> None:
    reference, residual = model(seed), None
    true = arrived = np.zeros(flat(reference).size)
    for number in range(rounds):
        new = plus(reference, model(seed + number, 10.0 ** -(number % 3)))
        encoded, residual = updates.encode(new, reference, "int8", residual)
        received = updates.decode(encoded, reference, "int8")
        true = true + flat(new) - flat(reference)
        arrived = arrived + flat(received) - flat(reference)
        # The other nodes move the model on.
        reference = plus(received, model(seed - number + 100, 0.1))
    sizes = [reference[name].size for name in sorted(reference)]
    lengths = [min(256, size - start) for size in sizes for start in range(0, size, 256)]
    quantum = np.repeat(encoded[SCALE], lengths)
    assert (np.abs(true - arrived) <= quantum * 0.51 + 1e-5).all()


def test_small_updates_beside_a_large_one_arrive_in_time() -> None:
    """Each is less than half a quantum: without feedback none would ever arrive."""
    step = vector([1.0] + [0.001] * 255)
    received, residual = vector([0.0] * 256), None
    for _ in range(100):
        encoded, residual = updates.encode(plus(received, step), received, "int8", residual)
        received = updates.decode(encoded, received, "int8")
    np.testing.assert_allclose(received["w"][1:], 0.1, atol=1 / 127)
    alone, _ = updates.encode(step, vector([0.0] * 256), "int8")
    assert not alone[WORD][1:].any()


def test_result_is_the_same_in_any_order_of_names_and_for_any_memory_layout() -> None:
    new, reference = model(1), model(0)
    residual = np.linspace(-1, 1, updates.size(reference), dtype=np.float32)
    first = updates.encode(new, reference, "int8", residual)
    turned = {k: np.asfortranarray(v) for k, v in reversed(new.items())}
    second = updates.encode(turned, dict(reversed(reference.items())), "int8", residual)
    assert first[1].tobytes() == second[1].tobytes()
    assert {k: v.tobytes() for k, v in first[0].items()} == {
        k: v.tobytes() for k, v in second[0].items()
    }
    decoded = updates.decode(first[0], reference, "int8")
    assert list(decoded) == list(reference)
    assert {k: v.shape for k, v in decoded.items()} == {k: v.shape for k, v in reference.items()}


def test_zero_update_is_exactly_nothing() -> None:
    reference = model(0)
    for dtype in ("bfloat16", "int8"):
        encoded, residual = updates.encode(reference, reference, dtype)
        decoded = updates.decode(encoded, reference, dtype)
        assert {k: v.tobytes() for k, v in decoded.items()} == {
            k: v.tobytes() for k, v in reference.items()
        }
        assert not residual.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_arrives_as_not_finite_and_spoils_no_later_round(
    dtype: str, value: float
) -> None:
    reference = model(0)
    diverged = dict(model(1))
    diverged["layer3"] = diverged["layer3"].copy()
    diverged["layer3"][7] = value
    owed = np.full(updates.size(reference), 0.25, np.float32)
    encoded, residual = updates.encode(diverged, reference, dtype, owed)
    assert not np.isfinite(updates.decode(encoded, reference, dtype)["layer3"]).all()
    if dtype == "int8":
        assert np.isnan(encoded[SCALE]).any() or np.isinf(encoded[SCALE]).any()
        np.testing.assert_array_equal(residual, owed)


@pytest.mark.filterwarnings("error")
def test_extremes_of_float32() -> None:
    largest = float(np.finfo(np.float32).max)
    cases = [largest, 1e-45, 1e-38, largest / 254]
    for dtype in ("bfloat16", "int8"):
        for value in cases:
            new, reference = vector([value, -value]), vector([-value, value])
            encoded, residual = updates.encode(new, reference, dtype)
            decoded = updates.decode(encoded, reference, dtype)["w"]
            assert np.isfinite(residual).all()
            if value != largest:  # twice the largest number is none
                np.testing.assert_allclose(decoded, new["w"], rtol=0.01, atol=1e-43)


def test_update_that_will_be_dropped_leaves_the_residual_alone() -> None:
    reference, new = model(0), model(1, 1e6)
    owed = np.full(updates.size(reference), 0.25, np.float32)
    _, kept = updates.encode(new, reference, "int8", owed, max_update_norm=1e3)
    np.testing.assert_array_equal(kept, owed)
    _, carried = updates.encode(new, reference, "int8", owed, max_update_norm=1e9)
    assert not np.array_equal(carried, owed)


def test_arrays_that_are_not_float32_travel_as_they_are() -> None:
    reference: Arrays = {"steps": np.array(3), "w": np.zeros(4, np.float32), "d": np.ones(2)}
    new: Arrays = {"steps": np.array(9), "w": np.ones(4, np.float32), "d": np.full(2, math.pi)}
    for dtype in ("bfloat16", "int8"):
        encoded, _ = updates.encode(new, reference, dtype)
        assert {k: updates.Layout(v.shape, v.dtype) for k, v in encoded.items()} == updates.layout(
            reference, dtype
        )
        decoded = updates.decode(encoded, reference, dtype)
        for name, value in new.items():
            np.testing.assert_allclose(decoded[name], value, rtol=1e-6)
            assert decoded[name].dtype == value.dtype


def owning(seed: int, prototypes: int = 3) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {
        "network.memory": (prototypes, 5, 70),
        "network.coverage": (prototypes, 8),
        "network.mixing": (10,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("prototypes", "mine"), [(1, 0), (3, 0), (3, 2)])
def test_a_nodes_own_part_is_one_entry_of_what_prototypes_own(prototypes: int, mine: int) -> None:
    whole = owning(0, prototypes)
    part = updates.own(whole, mine)
    assert list(part) == list(whole)
    assert part["network.memory"].shape == (1, 5, 70)
    assert part["network.coverage"].shape == (1, 8)
    assert updates.size(part) == 5 * 70 + 8 + 10
    np.testing.assert_array_equal(part["network.memory"][0], whole["network.memory"][mine])
    np.testing.assert_array_equal(part["network.coverage"][0], whole["network.coverage"][mine])
    np.testing.assert_array_equal(part["network.mixing"], whole["network.mixing"])
    without = model(0)
    assert updates.own(without, 7) == without


def test_error_feedback_of_two_prototypes_converges_beside_each_other() -> None:
    """Each node sends int8 of its own entry; after some rounds the model has both exactly."""
    wanted, received = owning(1, 2), owning(0, 2)
    residuals: list[NDArray[np.float32] | None] = [None, None]
    for _ in range(8):
        replies = []
        for mine in (0, 1):
            base = updates.own(received, mine)
            encoded, residuals[mine] = updates.encode(
                updates.own(wanted, mine), base, "int8", residuals[mine]
            )
            replies.append(updates.decode(encoded, base, "int8"))
        received = {
            name: np.concatenate([reply[name] for reply in replies])
            for name in ("network.memory", "network.coverage")
        } | {"network.mixing": replies[0]["network.mixing"]}
    for name, value in wanted.items():
        np.testing.assert_allclose(received[name], value, atol=1e-6)


def test_a_model_without_float32_arrays() -> None:
    reference: Arrays = {"steps": np.array(3)}
    for dtype in ("bfloat16", "int8"):
        encoded, residual = updates.encode({"steps": np.array(4)}, reference, dtype)
        assert updates.decode(encoded, reference, dtype)["steps"] == 4
        assert residual.size == 0


@settings(max_examples=30)
@given(st.binary(min_size=4 * 20, max_size=4 * 20), st.data())
def test_any_bytes_of_the_right_layout_decode(data: bytes, draw: st.DataObject) -> None:
    reference = vector([1.0] * 20)
    for dtype in ("bfloat16", "int8"):
        encoded = {}
        for name, (shape, kind) in updates.layout(reference, dtype).items():
            start = draw.draw(st.integers(0, 8))
            values = np.frombuffer(data, np.uint8)[start:][: math.prod(shape) * kind.itemsize]
            encoded[name] = values.copy().view(kind).reshape(shape)
        assert updates.decode(encoded, reference, dtype)["w"].shape == (20,)
