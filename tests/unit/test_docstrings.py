"""Whoever takes or returns arrays says their shapes in its docstring.

Read by `ast`, for nothing of a library is imported so. A shape is a list of dimensions in
parentheses, such as (Q, dim) or (options,), each built from `DIMENSIONS`; or one of `WORDS`.
One of them is enough for a docstring; whether it is true is for readers to see.
"""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

import pluralllm_fl

PACKAGE = Path(pluralllm_fl.__file__).parent
ARRAYS = {
    *("FloatArray", "IntArray", "BoolArray", "Arrays", "NDArray", "ndarray", "ArrayLike"),
    *("Tensor", "ArrayRecord"),
}
DIMENSIONS = {
    # Q questions, their N options; C of a context; one question's options
    *("Q", "N", "C", "questions", "options", "longest"),
    *("groups", "seen groups", "factors", "orders", "figures", "letters"),
    # of an embedding table and of networks
    *("rows", "columns", "dim", "embedding dim", "dimension", "indices"),
    *("width", "inputs", "outputs", "random features", "number"),
    # any number of values
    *("n", "m", "values", "bytes", "…"),
}
WORDS = re.compile(r"\bscalar\b|\bany shape\b|\bof\s+the\s+same\s+shape\s+as\b")
_LIST = re.compile(r"\(([^()]+,[^()]*)\)")


def names_a_shape(docstring: str) -> bool:
    """Whether a docstring holds a list of dimensions, or a word in its place."""
    lists = (found.removesuffix(",").split(",") for found in _LIST.findall(docstring))
    return bool(WORDS.search(docstring)) or any(all(map(_dimension, parts)) for parts in lists)


def _dimension(text: str) -> bool:
    """Whether a text is a dimension, a number, a multiple or a sum of them: ``1 + 2 dim``."""
    terms = (" ".join(re.sub(r"^\d+ ", "", term.strip()).split()) for term in text.split("+"))
    return all(term.isdigit() or term in DIMENSIONS for term in terms)


class Owner(NamedTuple):
    """A public function or class with arrays: file:line and name, and its docstring."""

    name: str
    docstring: str


def owners(sources: dict[str, str]) -> list[Owner]:
    """Return the owners of arrays in a package's modules, given as text by path."""
    trees = {path: ast.parse(text) for path, text in sources.items()}
    aliases = {path: _aliases(tree) for path, tree in trees.items()}
    found = []
    for path, tree in trees.items():
        known = ARRAYS | aliases[path]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                there = f"{node.module.replace('.', '/')}.py"
                known |= aliases.get(there, set()) & {alias.name for alias in node.names}
        found += [
            Owner(f"{path}:{node.lineno} {name}", ast.get_docstring(node) or "")
            for name, node in _public(tree.body)
            if any(_names_array(hint, known) for hint in _annotations(node))
        ]
    return found


def _aliases(tree: ast.Module) -> set[str]:
    """Return a module's names for types that hold arrays, such as ``Weights = dict[str, Tensor]``.

    One that is called is left out: who takes a function does not take its arrays.
    """
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
        for target in node.targets
        if isinstance(target, ast.Name)
        and _names_array(node.value, ARRAYS)
        and not _names_array(node.value, {"Callable"})
    }


def _names_array(annotation: ast.AST | None, known: set[str]) -> bool:
    """Whether a type is one of `known` or is built from one; a string counts as what it says."""
    for node in ast.walk(annotation) if annotation else ():
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        text = node.value if isinstance(node, ast.Constant) else ""
        if name in known or (isinstance(text, str) and known & set(re.findall(r"\w+", text))):
            return True
    return False


Public = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Public]]:
    """Yield public functions, classes and methods; what a class says of `__init__` is its own."""
    for node in body:
        if isinstance(node, Public) and (not node.name.startswith("_") or node.name == "__call__"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


def _annotations(node: Public) -> Iterator[ast.expr | None]:
    """Yield the types of parameters and result; of a class those of its fields and `__init__`."""
    if isinstance(node, ast.ClassDef):
        constructors = [x for x in node.body if getattr(x, "name", "") == "__init__"]
        yield from chain.from_iterable(map(_annotations, constructors))
        for field in chain(node.body, *map(ast.walk, constructors)):
            if isinstance(field, ast.AnnAssign):
                name = getattr(field.target, "id", "") or getattr(field.target, "attr", "_")
                yield None if name.startswith("_") else field.annotation
    else:
        yield node.returns
        arguments = ast.walk(node.args)
        yield from (part.annotation for part in arguments if isinstance(part, ast.arg))


def package() -> dict[str, str]:
    return {
        path.relative_to(PACKAGE.parent).as_posix(): path.read_text("utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_every_owner_of_arrays_says_their_shapes() -> None:
    found = owners(package())
    assert len(found) > 100
    assert [owner.name for owner in found if not names_a_shape(owner.docstring)] == []


BAD = {
    "p/names.py": "Weights = dict[str, Tensor]\nUse = Callable[[Tensor], None]\n",
    "p/bad.py": '''
from p.names import Use, Weights
def plain(a: FloatArray): "Add the figures (context, target)."
def quoted() -> "dict[str, Tensor]": ...
def renamed(*a: Weights): "Add them."
def uses(a: Use) -> int: "Take no array itself."
def _private(a: Tensor): ...
class Holder:
    """Hold it."""
    held: Tensor | None
    _kept: Tensor
    def __init__(self, b): self.b: Tensor = b
    @property
    def one(self) -> list[np.ndarray]: "Return one."
    def two(self) -> Tensor: "Return two, shape (N,)."
''',
}


def test_a_docstring_without_a_shape_is_found() -> None:
    found = [owner.name for owner in owners(BAD) if not names_a_shape(owner.docstring)]
    assert found == [
        "p/bad.py:3 plain", "p/bad.py:4 quoted", "p/bad.py:5 renamed", "p/bad.py:8 Holder",
        "p/bad.py:14 Holder.one",
    ]  # fmt: skip


@pytest.mark.parametrize(("docstring", "expected"), [
    ("Shares, (options,).", True), ("Map (N, 4 dim) to (Q, 1 + dim).", True), ("(2,)", True),
    ("Loss, a scalar.", True), ("(Q, longest, …)", True), ("(seen\n    groups,)", True),
    ("", False), ("Shares (of options).", False), ("(context, target) indices", False),
    ("(options)", False), ("(N, nonsense)", False), ("Scalars of a shape.", False),
])  # fmt: skip
def test_what_counts_as_a_shape(docstring: str, expected: bool) -> None:
    assert names_a_shape(docstring) is expected
