"""GlobalOpinionQA (Durmus et al. 2023, arXiv 2306.16388): where it lies, its split, its cells.

Its lists and mappings are the text of Python values, as `repr` writes them.
"""

import ast
import warnings
from dataclasses import replace
from enum import Enum
from typing import Any

from pluralllm_fl.preferences import PreferenceDataset

HUB_ID = "Anthropic/llm_global_opinions"

# The split of PluralLLM (arXiv 2503.09925).
SEEN = (
    "Nigeria",
    "Egypt",
    "India (Current national sample)",
    "Germany",
    "United States",
    "Canada",
    "Argentina",
    "Australia",
)
UNSEEN = ("China", "Japan", "France", "Spain", "Brazil", "New Zealand")


def with_paper_split(dataset: PreferenceDataset) -> PreferenceDataset:
    """Add the paper's split as the default if every seen group is there, else change nothing."""
    if not all(group in dataset.groups for group in SEEN):
        return dataset
    unseen = tuple(group for group in UNSEEN if group in dataset.groups)
    return replace(dataset, default_seen=SEEN, default_unseen=unseen)


class Repeated(Enum):
    """Stands for the value of a key that a mapping holds twice."""

    TWICE = "given twice"


def mapping_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Build a mapping in which a repeated key has the value `TWICE`, not its last one."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        found[key] = Repeated.TWICE if key in found else value
    return found


def literal(text: str) -> object:
    """Value of the text of a Python literal; None when it is none. Nothing is executed.

    ``nan``, ``inf`` and numpy's scalars (``np.float64(0.4)``) are read too, so that one of them
    does not cost the whole cell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in the data are no concern of the user
        try:
            return _value(ast.parse(text, mode="eval").body)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            named = zip((_value(key) for key in keys if key), values, strict=True)
            return mapping_of([(key, _value(value)) for key, value in named])
        case ast.UnaryOp(op=ast.USub(), operand=ast.expr() as inner):
            return -_value(inner)
        case ast.Name(id="nan" | "inf" as name):
            return float(name)
        case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="nan" | "inf" as name):
            return float(name)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="np" | "numpy")), args=[item], keywords=[]
        ):
            return _value(item)
    raise ValueError("no literal")
