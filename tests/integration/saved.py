"""A saved run whose predictor nobody trained, for tests of what uses one."""

import json
from pathlib import Path

import torch

from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.workspace import open_workspace


def untrained_run(folder: Path) -> Path:
    """Write a run of four synthetic groups, whose small predictor tells options apart."""
    small = {
        "synthetic-groups": 4, "synthetic-questions": 60, "unseen-fraction": 0.25,
        "width": 16, "question-features": 64,
    }  # fmt: skip
    config = RunConfig.default(small)
    workspace = open_workspace(config)
    predictor = initial_predictor(
        config, workspace.vectors.shape[1], workspace.embedding_fingerprint
    )
    torch.nn.init.normal_(predictor.get_parameter("network.mean.head.weight"), std=0.1)
    predictor.save_pretrained(folder / "model")
    recorded = {"config": config.to_run_config(), "seen": workspace.seen}
    (folder / "run.json").write_text(json.dumps(recorded))
    return folder
