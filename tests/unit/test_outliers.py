"""Updates far outside the round's own norms, array by array."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm_fl.federation.outliers import far_from_others

SIZES = {"large": 10_000, "small": 4}
HONEST = {"large": 1.0, "small": 0.02}


def round_of(count: int, **odd: dict[str, float]) -> dict[str, dict[str, float]]:
    return {f"group {i}": HONEST for i in range(count)} | odd


@pytest.mark.parametrize(
    ("update", "part"),
    [
        ({"large": 5.1, "small": 0.02}, "update norm 5.1 "),
        ({"large": 1.0, "small": 0.11}, "update norm of small 0.11 "),
        # The small part is lost in the whole: its length hardly changes.
        ({"large": 1.0, "small": 1.0}, "update norm of small 1 "),
    ],
)
def test_a_long_update_or_part_is_named(update: dict[str, float], part: str) -> None:
    found = far_from_others(round_of(4, odd=update), SIZES, 5.0)
    assert list(found) == ["odd"]
    assert part in found["odd"]
    assert "max-update-ratio = 5" in found["odd"]


@pytest.mark.parametrize("update", [{"large": 4.9, "small": 0.09}, {"large": 0.0, "small": 0.0}])
def test_within_the_ratio_nobody_is_named(update: dict[str, float]) -> None:
    assert far_from_others(round_of(4, odd=update), SIZES, 5.0) == {}


def test_an_array_that_most_did_not_move_may_move_as_far_as_any_other_value() -> None:
    """In the first round, or with few answers, honest nodes leave some arrays as they are."""
    still = {f"group {i}": {"large": 1.0, "small": 0.0} for i in range(4)}
    typical = 1.0 / 10_004**0.5 * 4**0.5
    usual = {"large": 1.0, "small": 4.9 * typical}
    far = {"large": 1.0, "small": 5.1 * typical}
    assert far_from_others({**still, "odd": usual}, SIZES, 5.0) == {}
    assert list(far_from_others({**still, "odd": far}, SIZES, 5.0)) == ["odd"]


def test_two_updates_cannot_be_compared() -> None:
    assert far_from_others(round_of(1, odd={"large": 99.0, "small": 9.0}), SIZES, 5.0) == {}


def test_nobody_moved_and_then_anybody_is_far() -> None:
    still = {f"group {i}": {"large": 0.0, "small": 0.0} for i in range(3)}
    assert far_from_others(still, SIZES, 5.0) == {}
    assert list(far_from_others({**still, "odd": HONEST}, SIZES, 5.0)) == ["odd"]


@given(st.lists(st.floats(0.5, 2.4), min_size=3, max_size=9), st.floats(1e-6, 1e6))
def test_any_unit_and_order_gives_the_same_verdict(lengths: list[float], unit: float) -> None:
    """Norms within a factor of 5 of each other are never far."""
    norms = {str(i): {"large": x * unit, "small": x * unit} for i, x in enumerate(lengths)}
    assert far_from_others(norms, SIZES, 5.0) == {}
    assert list(
        far_from_others({**norms, "odd": {"large": 50 * unit, "small": 0.0}}, SIZES, 5.0)
    ) == ["odd"]
