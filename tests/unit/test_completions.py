"""Which option a completion is, and what it is none of."""

import pytest

from pluralllm_fl.datasets.completions import quoted_option, spoken, stated_option
from pluralllm_fl.errors import ConfigError

DRINKS = ["Tea", " Coffee", "Milk"]


@pytest.mark.parametrize(
    ("completion", "options", "expected"),
    [
        ("Tea", DRINKS, 0),
        ("Coffee", DRINKS, 1),
        ("coffee", DRINKS, 1),
        ("C", DRINKS, 2),
        ("(B)", DRINKS, 1),
        ("B.", DRINKS, 1),
        ("B) coffee", DRINKS, 1),
        ("(A): Tea", DRINKS, 0),
        ("A. Milk", DRINKS, None),  # letter and text disagree
        ("D", DRINKS, None),  # beyond the options
        ("b", DRINKS, None),
        ("I", [f"option {i}" for i in range(9)], 8),
        ("I think tea", DRINKS, None),
        ("A cup of tea", DRINKS, None),
        ("", DRINKS, None),
        ("B", ["B", "A"], 0),  # the text wins over the letter
        ("a", ["B", "A"], 1),
        ("us", ["US", "us"], 1),
        ("Us", ["US", "us"], None),
    ],
)
def test_text_then_letter(completion: str, options: list[str], expected: int | None) -> None:
    assert stated_option(completion, options) == expected


def test_what_was_said() -> None:
    assert spoken(" Tea \n") == "Tea"
    assert spoken([{"role": "assistant", "content": "Tea "}]) == "Tea"
    turns = [{"role": "assistant", "content": "Hm"}, {"role": "assistant", "content": "Tea"}]
    assert spoken(turns) == "Tea"
    assert spoken([]) == spoken("") == ""
    for wrong in (None, 3, [{"role": "assistant"}], [{"content": None}]):
        with pytest.raises(ConfigError, match="A completion is a text or a list"):
            spoken(wrong)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("I think coffee.", DRINKS, 1),
        ("COFFEE, please", DRINKS, 1),
        ("Tea or coffee", DRINKS, None),
        ("A steak", DRINKS, None),  # "tea" is a part of a word
        ("Very good, I say", ["Good", "Very good"], 1),
        ("Very good, or just good", ["Good", "Very good"], None),
        ("Well, I don't know, really", ["Yes", "I don't know."], 1),
        ("(a) or so", ["(a)", "(b)"], 0),
        ("Beer", DRINKS, None),
    ],
)
def test_the_option_that_a_text_quotes(text: str, options: list[str], expected: int | None) -> None:
    assert quoted_option(text, options) == expected
