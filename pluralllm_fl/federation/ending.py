"""The last lines of a run's log: where it is, and what it does for groups that hold no node."""

import logging
from pathlib import Path

from pluralllm_fl.evaluation.opening import run_config
from pluralllm_fl.evaluation.other_groups import evaluate_run
from pluralllm_fl.runs.record import RunRecord
from pluralllm_fl.workspace import is_generated

logger = logging.getLogger("flwr.pluralllm_fl")


def log_ending(run: Path) -> None:
    """Log how a completed run ended.

    A simulation of the generated survey with fewer nodes than groups lacks nodes for unseen
    groups. Their answers are no secret of anybody, so the server scores the model on them.
    """
    record, config = RunRecord.read(run), run_config(run)
    nodes = record.groups
    survey = is_generated(config) and record.mode == "simulation"
    if survey and len(nodes) < config.synthetic_groups:
        block = evaluate_run(run, config.dataset)["unseen"]
        new = block["test_questions"]
        logger.info(
            "%d node(s) hold %d of the survey's %d groups. On the %d groups that did not train, "
            "%d answers of each shown: alignment %.4f (uniform %.4f)%s.",
            len(nodes), len(nodes), config.synthetic_groups, len(block["by_group"]),
            config.context_questions, block["alignment"], block["uniform"],
            f"; new questions {new['alignment']:.4f} (uniform {new['uniform']:.4f})" if new else "",
        )  # fmt: skip
        logger.info(
            "For a node each: flwr run . --stream --federation-config "
            '"num-supernodes=%d client-resources-num-cpus=1"',
            config.synthetic_groups,
        )
    logger.info("Completed. Results: %s (`pluralllm report` draws them)", run)
