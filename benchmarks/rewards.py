"""What a request for rewards costs a node, and what rewards let the server read of its answers.

Needs a finished simulation whose data is at hand. A server that asks for the reward of every option
of a question reads the group's predicted distribution. So the second table holds the predictions
that build on 0, 5, 20, 100 or all of a group's answers against these answers and against its
others, over the groups that did not train. Prints both tables and writes rewards.json.

    python benchmarks/rewards.py runs/RUN
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict

from pluralllm_fl.evaluation.audit.reading import figures, mean_reading, reading
from pluralllm_fl.evaluation.opening import open_run
from pluralllm_fl.evaluation.scores import predict_targets
from pluralllm_fl.federation.node import LocalNode
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.wire.messages import RewardRequest, Rollouts, rewarded
from pluralllm_fl.wire.records import count_bytes
from pluralllm_fl.workspace import Workspace

SHOWN = (0, 5, 20, 100, None)  # None: all
BATCHES = ((1, 16), (16, 16), (64, 16))  # prompts, completions of each
OPTIONS = ("Yes", "No", "Perhaps", "Never")


def readings(workspace: Workspace, predictor: PreferencePredictor, shown: int | None) -> Any:
    """Return what is read of the answers that rewards build on, and of the others."""
    parts: dict[str, list[Any]] = {"these answers": [], "the others": []}
    for group in workspace.unseen:
        table = workspace.table(group)
        every = np.arange(len(table.questions))  # by question id, as a node takes them
        context, rest = every[:shown], every[len(every) if shown is None else shown :]
        for name, asked in (("these answers", context), ("the others", rest)):
            if len(asked):
                parts[name].append(
                    reading(predict_targets(predictor.eval(), table, context, asked))
                )
    return {name: figures(mean_reading(np.array(rows))) for name, rows in parts.items() if rows}


def costs(workspace: Workspace, predictor: PreferencePredictor) -> dict[str, Any]:
    """Return CPU seconds and bytes of requests, once their texts are embedded."""
    group = workspace.unseen[0]
    groups, shown = len(workspace.groups), workspace.config.context_questions
    node = LocalNode(workspace.config, workspace, group, "evaluate", groups, 0, shown)
    arrays = ArrayRecord(predictor.state_dict())
    rows = {}
    for prompts, completions in BATCHES:
        said = tuple(OPTIONS[i % len(OPTIONS)] for i in range(completions))
        asked = [Rollouts(f"Do you like number {i}?", OPTIONS, said) for i in range(prompts)]
        request = RewardRequest("likelihood", False, tuple(asked))
        node.reward(arrays, request)
        seconds = []
        for _ in range(5):
            start = time.process_time()
            found = node.reward(arrays, request)
            seconds.append(time.process_time() - start)
        rows[f"{prompts} x {completions}"] = {
            "CPU seconds": min(seconds),
            "bytes down": count_bytes(RecordDict({"arrays": arrays, "config": request.record()})),
            "bytes up": count_bytes(rewarded(found)),
        }
    return rows


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    workspace, predictor = open_run(arguments.run)
    record = {
        "data": workspace.dataset.name,
        "answers a group": float(np.mean([len(workspace.table(g)) for g in workspace.unseen])),
        "readings": {
            "all" if n is None else str(n): readings(workspace, predictor, n) for n in SHOWN
        },
        "costs": costs(workspace, predictor.cpu()),
    }
    for rollouts, cost in record["costs"].items():
        print(f"{rollouts:>8}  " + "  ".join(f"{name} {value:.4g}" for name, value in cost.items()))
    for shown, parts in record["readings"].items():
        for name, figure in parts.items():
            values = "  ".join(f"{key} {value:.3f}" for key, value in figure.items())
            print(f"{shown:>4} answers, {name:<14} {values}")
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
