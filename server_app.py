"""The ServerApp: configuration, predictor and federation put together."""

import logging

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import PluralLLMError
from pluralllm_fl.federation.session import Model, ModelBuilder, run_federation
from pluralllm_fl.predictor import PredictorConfig, PreferencePredictor
from pluralllm_fl.training import learning_rate_at

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation; a mistake of the user ends it with one clear line in the log."""
    try:
        config = RunConfig.from_run_config(context.run_config)
        torch.set_num_threads(config.threads)
        run_federation(grid, config, _builder(config), learning_rate_at)
    except PluralLLMError as error:
        logging.getLogger("flwr.pluralllm_fl").error("%s", error)
        raise error.with_traceback(None) from error.__cause__


def _builder(config: RunConfig) -> ModelBuilder:
    def build(embedding_dim: int, embedding_fingerprint: str) -> Model:
        torch.manual_seed(config.seed)
        return PreferencePredictor(
            PredictorConfig.from_run_config(config, embedding_dim, embedding_fingerprint)
        )

    return build
