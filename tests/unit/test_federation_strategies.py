"""Strategies by name and import path, and their state."""

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pluralllm_fl import strategies
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.strategies import state as strategy_state


def build(name: str, **kwargs: Any) -> Strategy:
    return strategies.build(name, kwargs, train_nodes=8, all_nodes=14)


@pytest.mark.parametrize("name", ["fedavg", "FedAvg", "flwr.serverapp.strategy:FedAvg"])
def test_names(name: str) -> None:
    assert type(build(name)) is FedAvg


PRIVATE = [name for name in strategies.SHORT_NAMES if name.startswith("differentialprivacy")]


def test_every_short_name_can_be_built() -> None:
    assert len(PRIVATE) == 4
    for name in strategies.SHORT_NAMES:
        needed: dict[str, Any] = {"noise_multiplier": 0.1} if name in PRIVATE else {}
        if name.endswith("fixedclipping"):
            needed["clipping_norm"] = 1.0
        assert isinstance(build(name, **needed), Strategy)
    assert set(strategies.SHORT_NAMES) >= {
        "fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedavgm", "fedmedian",
        "fedtrimmedavg", "krum", "multikrum", "bulyan", "qfedavg",
    }  # fmt: skip


def test_defaults_follow_the_number_of_nodes_and_may_be_overridden() -> None:
    multikrum = vars(build("multikrum"))
    assert (multikrum["num_malicious_nodes"], multikrum["num_nodes_to_select"]) == (2, 6)
    assert vars(build("multikrum", num_malicious_nodes=1))["num_nodes_to_select"] == 7
    assert vars(build("multikrum", num_nodes_to_select=3))["num_nodes_to_select"] == 3
    assert vars(build("bulyan"))["num_malicious_nodes"] == 1
    assert vars(build("fedadam", eta=0.5))["eta"] == 0.5
    wrapper = build(PRIVATE[0], noise_multiplier=0.1, strategy={"name": "fedavg"})
    assert vars(wrapper)["num_sampled_clients"] == 8


@pytest.mark.parametrize("inner", [{}, {"strategy": {"fraction_train": 0.5}}])
def test_noise_is_never_divided_by_more_nodes_than_train(inner: dict[str, Any]) -> None:
    for name in PRIVATE:
        needed = {"noise_multiplier": 0.1, "num_sampled_clients": 9, **inner}
        if name.endswith("fixedclipping"):
            needed["clipping_norm"] = 1.0
        with pytest.raises(ConfigError, match=r"num_sampled_clients = 9.*too little noise. Take"):
            build(name, **needed)


@pytest.mark.parametrize("number", ["8", True, 2.5, 1e9, [8]])
def test_noise_is_divided_by_a_whole_number(number: object) -> None:
    with pytest.raises(ConfigError, match="num_sampled_clients = "):
        build(PRIVATE[0], noise_multiplier=0.1, num_sampled_clients=number)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("fedavgg", {}, "Did you mean 'fedavg'.*fedprox"),
        ("nonsense_xyz", {}, "Known: .*fedavg"),
        ("no_such_pkg.mod:Thing", {}, "cannot import 'no_such_pkg.mod'"),
        ("flwr.serverapp.strategy:FedAvgg", {}, "Did you mean 'FedAvg'"),
        ("collections:OrderedDict", {}, "not a flwr.serverapp.strategy.Strategy"),
        ("flwr.serverapp.strategy:Strategy", {}, "abstract"),
        ("fedprox", {"proximal_my": 1}, "no 'proximal_my'.*Did you mean 'proximal_mu'"),
        ("fedavg", {"fraction_train": 1.5}, "fraction_train = 1.5 must be between 0 and 1"),
        ("fedavg", {"fraction_train": "all"}, "fraction_train = 'all' must be a number"),
        ("fedavg", {"min_train_nodes": 2.5}, "min_train_nodes = 2.5 must be a whole number"),
        ("fedavg", {"min_train_nodes": 9}, "min_train_nodes = 9 can never be reached: only 8"),
        ("fedavg", {"min_evaluate_nodes": 15}, "only 14"),
        ("fedtrimmedavg", {"beta": 0.7}, "beta"),
        ("bulyan", {"num_malicious_nodes": 2}, "at least 11 training nodes"),
        ("differentialprivacyserversidefixedclipping", {"clipping_norm": 1.0}, "noise_multiplier"),
        (
            "differentialprivacyserversidefixedclipping",
            {"strategy": "fedavgg", "noise_multiplier": 1.0},
            "Did you mean 'fedavg'",
        ),
    ],
)
def test_mistakes_are_explained(name: str, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        build(name, **kwargs)


def test_minima_are_capped_where_the_user_said_nothing() -> None:
    strategy = strategies.build("fedavg", {}, train_nodes=1, all_nodes=2)
    assert isinstance(strategy, FedAvg)
    values = (strategy.min_train_nodes, strategy.min_evaluate_nodes, strategy.min_available_nodes)
    assert values == (1, 2, 1)


def test_wrapped_strategy_is_built_from_its_own_arguments() -> None:
    wrapper = build(
        "differentialprivacyserversidefixedclipping",
        strategy={"name": "fedavgm", "server_momentum": 0.5},
        noise_multiplier=1.0,
        clipping_norm=1.0,
        num_sampled_clients=8,
    )
    inner = strategies.innermost(wrapper)
    assert (type(inner).__name__, vars(inner)["server_momentum"]) == ("FedAvgM", 0.5)
    assert strategies.is_private(wrapper)
    assert not strategies.is_private(inner)


class Stateful(FedAvg):
    """Keeps one attribute, whatever it is."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value


def round_trip(value: object) -> object:
    tree, arrays = strategy_state.capture(Stateful(value))
    fresh = Stateful("something else")
    strategy_state.restore(fresh, json.loads(json.dumps(tree)), arrays)
    return fresh.value


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
states = st.recursive(
    plain | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        same = type(a) is type(b) and len(a) == len(b)
        return same and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@settings(max_examples=300)
@given(states)
def test_any_plain_state_survives(value: object) -> None:
    assert equal(round_trip(value), value)


def test_array_records_and_scalars_survive() -> None:
    record = ArrayRecord([np.arange(3.0), np.array(1.5, dtype=np.float32)])
    restored = round_trip(record)
    assert isinstance(restored, ArrayRecord)
    assert {k: v.data for k, v in restored.items()} == {k: v.data for k, v in record.items()}
    assert equal(np.asarray(round_trip(np.float32(0.1))), np.asarray(np.float32(0.1)))


def test_captured_arrays_are_copies() -> None:
    value = np.zeros(2)
    _, arrays = strategy_state.capture(Stateful(value))
    value += 1
    assert not arrays["value"].any()


def test_unknown_state_is_named_and_never_pickled() -> None:
    tree, arrays = strategy_state.capture(Stateful({1, 2}))
    assert strategy_state.unsupported(tree) == ["value"]
    with pytest.raises(ArtefactError, match="keeps 'value' in a set"):
        strategy_state.restore(Stateful(), tree, arrays)
    with pytest.raises(ArtefactError, match="is of strategy"):
        strategy_state.restore(FedAvg(), tree, arrays)
