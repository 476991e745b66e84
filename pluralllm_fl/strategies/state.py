"""A strategy's state as JSON plus named arrays, and back: no pickle, any strategy class."""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.wire.records import to_arrays, to_record

_RECORDS: dict[str, Any] = {"metric-record": MetricRecord, "config-record": ConfigRecord}


def capture(strategy: Strategy) -> tuple[dict[str, Any], Arrays]:
    """Copy everything in ``vars(strategy)``, wrapped strategies included.

    Returns
    -------
    tree : dict
        JSON; a value that is not plain is a one-key object that names its kind. Functions are
        configuration and left out; other unknown objects are named under ``unsupported``.
    arrays : dict of str to ndarray, any shape
        Copies of the arrays that the tree refers to.
    """
    arrays: Arrays = {}
    return _encode_object(strategy, "", arrays), arrays


def restore(strategy: Strategy, tree: dict[str, Any], arrays: Arrays) -> None:
    """Set the captured state (`arrays` of any shape) on a newly built strategy of the same class.

    Raises
    ------
    ArtefactError
        If the state is of another class, or holds values that could not be captured.
    """
    if tree["class"] != _class_name(strategy):
        raise ArtefactError(
            f"the checkpoint is of strategy {tree['class']}, the run uses {_class_name(strategy)}"
        )
    for name, node in tree["vars"].items():
        if isinstance(node, dict) and "unsupported" in node:
            raise ArtefactError(
                f"strategy {tree['class']} keeps '{name}' in a {node['unsupported']}, which "
                "checkpoints cannot hold: such a run cannot be resumed"
            )
        if isinstance(node, dict) and "class" in node:
            restore(getattr(strategy, name), node, arrays)
        elif not (isinstance(node, dict) and "left-out" in node):
            setattr(strategy, name, _decode(node, arrays))


def unsupported(tree: dict[str, Any]) -> list[str]:
    """Return the names of attributes that `restore` will refuse."""
    found = []
    for name, node in tree["vars"].items():
        if isinstance(node, dict) and "unsupported" in node:
            found.append(name)
        elif isinstance(node, dict) and "class" in node:
            found += unsupported(node)
    return found


class _UnsupportedError(Exception):
    """Carries the type name of a value that cannot be captured."""


def _class_name(strategy: Strategy) -> str:
    return f"{type(strategy).__module__}:{type(strategy).__qualname__}"


def _encode_object(strategy: Strategy, path: str, arrays: Arrays) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    # Attributes are private to Flower's strategies, but a resumed run must have them. Delete when
    # strategies save and load their own state (asked for in flwrlabs/flower#599, now closed).
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            nodes[name] = _encode_object(value, f"{path}{name}.", arrays)
        elif callable(value):
            nodes[name] = {"left-out": "function"}
        else:
            taken: Arrays = {}
            try:
                nodes[name] = _encode(value, f"{path}{name}", taken)
                arrays |= taken
            except _UnsupportedError as error:
                nodes[name] = {"unsupported": str(error)}
    return {"class": _class_name(strategy), "vars": nodes}


def _encode(value: object, path: str, arrays: Arrays) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        arrays[path] = np.array(value, order="C")
        return {"array" if isinstance(value, np.ndarray) else "scalar": path}
    if isinstance(value, ArrayRecord):
        record = to_arrays(value)
        arrays |= {f"{path}.{k}": v for k, v in record.items()}
        return {"array-record": [[k, f"{path}.{k}"] for k in record]}
    for kind, cls in _RECORDS.items():
        if isinstance(value, cls):
            return {kind: _encode(dict(value.items()), path, arrays)}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [_encode(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if (
        isinstance(value, dict)
        and type(value) is dict
        and all(type(key) in (str, int) for key in value)
    ):
        return {"dict": [[k, _encode(v, f"{path}.{k!r}", arrays)] for k, v in value.items()]}
    raise _UnsupportedError(type(value).__name__)


def _decode(node: Any, arrays: Arrays) -> Any:
    if not isinstance(node, dict):
        return node
    [(kind, body)] = node.items()
    if kind == "array":
        return arrays[body].copy()
    if kind == "scalar":
        return arrays[body][()]
    if kind == "array-record":
        return to_record({name: arrays[path] for name, path in body})
    if kind in _RECORDS:
        return _RECORDS[kind](_decode(body, arrays))
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in body}
    if kind not in ("list", "tuple"):
        raise ArtefactError(
            f"the checkpoint's strategy holds a '{kind}', which this version of PluralLLM-FL does "
            "not know: resume with the version that wrote it"
        )
    items = [_decode(item, arrays) for item in body]
    return tuple(items) if kind == "tuple" else items
