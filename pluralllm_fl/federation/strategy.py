"""The strategy that a run's config names, and the settings that its privacy needs."""

import flwr.serverapp.strategy as stock
from flwr.serverapp.strategy import Strategy

from pluralllm_fl import strategies
from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.wire.changes import in_use

_CLIP_ON_NODES = (
    stock.DifferentialPrivacyClientSideFixedClipping,
    stock.DifferentialPrivacyClientSideAdaptiveClipping,
)


def strategy_of(config: RunConfig, *, train_nodes: int, all_nodes: int) -> Strategy:
    """Build the strategy that a config names; raises as `strategies.build`."""
    return strategies.build(
        config.strategy, config.strategy_kwargs, train_nodes=train_nodes, all_nodes=all_nodes
    )


def check_private(strategy: Strategy, config: RunConfig) -> None:
    """Refuse settings under which a privacy wrapper would not give what it says.

    Raises
    ------
    ConfigError
        For unequal weights, or updates that are changed after they were clipped.
    """
    if not strategies.is_private(strategy):
        return
    if config.client_weight != "uniform":
        raise ConfigError(
            f"strategy = '{config.strategy}' adds noise for equal weights: set client-weight = "
            "'uniform'."
        )
    changes = in_use(config.to_run_config())
    if isinstance(strategy, _CLIP_ON_NODES) and changes:
        change = changes[0]
        raise ConfigError(
            f"strategy = '{config.strategy}' clips updates on the nodes, and {change.KEY} would "
            f"change them after that: set {change.KEY} = '{change.OFF}'."
        )
