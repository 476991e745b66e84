"""The ServerApp: configuration, predictor and federation put together."""

import logging
from functools import partial

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import PluralLLMError
from pluralllm_fl.federation.ending import log_ending
from pluralllm_fl.federation.session import run_federation
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.predictor.training import learning_rate_at

logger = logging.getLogger("flwr.pluralllm_fl")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation; a mistake of the user ends it with one clear line in the log."""
    try:
        config = RunConfig.from_run_config(context.run_config)
        torch.set_num_threads(config.threads)
        run = run_federation(grid, config, partial(initial_predictor, config), learning_rate_at)
        log_ending(run)
    except PluralLLMError as error:
        logger.error("The run failed: %s", error)
        raise error.with_traceback(None) from error.__cause__
