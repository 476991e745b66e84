"""The ServerApp: configuration, predictor and federation put together."""

import logging
from functools import partial

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import PluralLLMError
from pluralllm_fl.federation.session import run_federation
from pluralllm_fl.predictor import initial_predictor
from pluralllm_fl.training import learning_rate_at

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation; a mistake of the user ends it with one clear line in the log."""
    try:
        config = RunConfig.from_run_config(context.run_config)
        torch.set_num_threads(config.threads)
        run_federation(grid, config, partial(initial_predictor, config), learning_rate_at)
    except PluralLLMError as error:
        logging.getLogger("flwr.pluralllm_fl").error("%s", error)
        raise error.with_traceback(None) from error.__cause__
