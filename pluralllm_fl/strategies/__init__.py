"""Strategies by short name or import path."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import flwr.serverapp.strategy as stock
from flwr.serverapp.strategy import Strategy

from pluralllm_fl.errors import ConfigError, nearest
from pluralllm_fl.strategies.defaults import defaults

_NOT_FOR_MODELS = {"Strategy", "Result", "FedXgbBagging", "FedXgbCyclic"}
SHORT_NAMES: dict[str, type[Strategy]] = {
    name.lower(): getattr(stock, name) for name in stock.__all__ if name not in _NOT_FOR_MODELS
}
# Stock strategies wait for ever for nodes that do not exist.
_MINIMA = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")


def build(
    name: str,
    kwargs: Mapping[str, Any],
    *,
    train_nodes: int,
    all_nodes: int,
) -> Strategy:
    """Build a stock strategy by short name, or any by import path.

    Parameters
    ----------
    name : str
        ``fedavg``, ``FedAdam``, … or ``package.module:Class``.
    kwargs : mapping
        The constructor's keyword arguments. A wrapper's ``strategy`` argument (differential
        privacy) is given as ``{"name": "fedavg", …its arguments}``; default: fedavg.
    train_nodes, all_nodes : int
        Nodes that train, and all nodes. Default minima are capped at these.

    Raises
    ------
    ConfigError
        For an unknown name or argument, an impossible value or a class that is no strategy.
    """
    cls = _find(name)
    arguments = _arguments(cls, name, kwargs, defaults(cls, kwargs, train_nodes))
    if "strategy" in inspect.signature(cls).parameters:
        inner = arguments.get("strategy", {"name": "fedavg"})
        inner = dict(inner) if isinstance(inner, dict) else {"name": str(inner)}
        inner_name = str(inner.pop("name", "fedavg"))
        arguments["strategy"] = build(
            inner_name,
            inner,
            train_nodes=train_nodes,
            all_nodes=all_nodes,
        )
    try:
        inspect.signature(cls).bind(**arguments)
        strategy = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"strategy-args do not fit strategy '{name}': {str(error).rstrip('.')}."
        ) from None
    caps = dict(zip(_MINIMA, (train_nodes, all_nodes, train_nodes), strict=True))
    _limit(strategy, arguments, caps)
    _check_bulyan(strategy, train_nodes)
    _check_sampled(strategy, train_nodes)
    return strategy


def innermost(strategy: Strategy) -> Strategy:
    """Return the strategy inside all wrappers."""
    inner = getattr(strategy, "strategy", None)
    return innermost(inner) if isinstance(inner, Strategy) else strategy


def is_private(strategy: Strategy) -> bool:
    """Whether aggregation adds noise that nobody may be able to predict."""
    return hasattr(strategy, "noise_multiplier")


def _find(name: str) -> type[Strategy]:
    if ":" not in name:
        if name.lower() not in SHORT_NAMES:
            raise ConfigError(
                f"Unknown strategy '{name}'.{nearest(name.lower(), SHORT_NAMES)} Known: "
                f"{', '.join(sorted(SHORT_NAMES))}; or package.module:Class."
            )
        return SHORT_NAMES[name.lower()]
    module_name, _, class_name = name.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise ConfigError(
            f"strategy = '{name}': cannot import '{module_name}' ({error}). Install its package "
            "where the ServerApp runs."
        ) from None
    except AttributeError:
        raise ConfigError(
            f"strategy = '{name}': module '{module_name}' has no '{class_name}'."
            f"{nearest(class_name, vars(importlib.import_module(module_name)))}"
        ) from None
    if not (inspect.isclass(cls) and issubclass(cls, Strategy)):
        raise ConfigError(f"strategy = '{name}' is not a flwr.serverapp.strategy.Strategy.")
    if inspect.isabstract(cls):
        raise ConfigError(f"strategy = '{name}' is abstract: name one of its subclasses.")
    return cls


def _arguments(
    cls: type[Strategy], name: str, kwargs: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in kwargs.items():
        if key not in parameters and not open_ended:
            raise ConfigError(
                f"strategy-args: strategy '{name}' has no '{key}'.{nearest(key, parameters)} "
                f"Known: {', '.join(parameters)}."
            )
        if key in parameters:
            _check_type(key, value, parameters[key].default)
    return {k: v for k, v in ours.items() if k in parameters} | dict(kwargs)


def _check_type(key: str, value: object, default: object) -> None:
    if key == "num_sampled_clients":  # has no default in some wrappers
        default = 1
    whole = isinstance(default, int) and key.startswith(("min_", "num_"))
    kinds: list[tuple[type, type | tuple[type, ...], str]] = [
        (bool, bool, "true or false"),
        (int, int if whole else (int, float), "a whole number" if whole else "a number"),
        (float, (int, float), "a number"),
        (str, str, "a text"),
    ]
    for kind, accepted, wanted in kinds:
        if isinstance(default, kind):
            wrong = not isinstance(value, accepted)
            if wrong or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"strategy-args: {key} = {value!r} must be {wanted}.")
            break
    if key.startswith("fraction_") and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ConfigError(f"strategy-args: {key} = {value!r} must be between 0 and 1.")


def _limit(strategy: Strategy, arguments: Mapping[str, Any], caps: Mapping[str, int]) -> None:
    for key, cap in caps.items():
        value = getattr(strategy, key, None)
        if not isinstance(value, int) or value <= cap:
            continue
        if key in arguments:
            raise ConfigError(
                f"strategy-args: {key} = {value} can never be reached: only {cap} node(s) take "
                "part in that phase."
            )
        setattr(strategy, key, cap)


def _check_sampled(strategy: Strategy, train_nodes: int) -> None:
    """Refuse a divisor of the noise larger than the number of nodes that it is shared by."""
    number = getattr(strategy, "num_sampled_clients", 0)
    inner = innermost(strategy)
    sampled = max(
        int(train_nodes * getattr(inner, "fraction_train", 1.0)),
        getattr(inner, "min_train_nodes", 0),
    )
    if number > sampled:
        raise ConfigError(
            f"strategy-args: num_sampled_clients = {number}, but {sampled} node(s) train in a "
            f"round: there would be too little noise. Take {sampled}."
        )


def _check_bulyan(strategy: Strategy, train_nodes: int) -> None:
    if isinstance(strategy, stock.Bulyan):
        needed = 4 * strategy.num_malicious_nodes + 3
        if train_nodes < needed:
            raise ConfigError(
                f"Bulyan with num_malicious_nodes = {strategy.num_malicious_nodes} needs at least "
                f"{needed} training nodes; there are {train_nodes}. Take fewer malicious nodes or "
                "another strategy."
            )
