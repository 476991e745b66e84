"""Write the artefacts of this version that later versions must load, or refuse in words.

    python -m tests.golden [model] [messages] [run]

Run it only when a format changes on purpose, for that kind alone, and say so in CHANGELOG.md. What
no format asks to write again stays as an earlier version wrote it.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from pluralllm_fl.config import RunConfig
from pluralllm_fl.evaluation.scores import NO_SCORE, SplitScore
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.messages import Introduction, Scores, TrainingReport, trained
from pluralllm_fl.wire.packing import packed
from pluralllm_fl.wire.records import to_record
from tests.integration.inprocess import tiny_config, tiny_run

FOLDER = Path(__file__).parent / "unit" / "golden"
DIMENSION = 8
CONFIG = RunConfig.default({
    "width": 8, "heads": 2, "feed-forward": 8, "question-features": 4, "factors": 2, "seed": 5,
})  # fmt: skip
ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "number": np.array(-2.5, dtype=np.float64),
    "counts": np.array([3, 1, 2], dtype=np.int64),
}
REPORT = TrainingReport(12.0, 0.5, 12, 0.25)
# The model as a node received it, and what its training added. A bfloat16 holds 8 bits of a number:
# 1/3 is rounded, and the last two lie halfway between two of them.
RECEIVED = ARRAYS | {"matrix": np.ones((2, 3), np.float32)}
UPDATE = np.array([[0, 0.5, -0.25], [1 / 3, 1 + 2**-8, 1 + 3 * 2**-8]], dtype=np.float32)
SCORES: Scores = {
    "all": SplitScore(0.75, 0.8125, 0.625, 0.875, 0.5, 10, 0.6875, 0.125, 24),
    "train": SplitScore(0.8125, 0.875, 0.75, 0.9375, 0.5, 7, 0.75, 0.0625, 16),
    "validation": NO_SCORE,
    "test": SplitScore(0.5, 0.5625, 0.25, 0.75, 0.4375, 3, 0.5, 0.25, 8),
}
INTRODUCTION = Introduction(
    group="Aland", role="train", dimension=3, embedding="tiny", device="cpu", dtype="float32",
    groups=0, supernodes=0, fingerprint="data of Aland", questions=10, train_questions=5,
)  # fmt: skip


def asked() -> QuestionBatch:
    """Two questions of three and two options, with answers."""
    rng = np.random.default_rng(0)
    return QuestionBatch(
        embedding=torch.from_numpy(rng.standard_normal((5, 2 * DIMENSION)).astype(np.float32)),
        question=torch.tensor([0, 0, 0, 1, 1]),
        position=torch.tensor([0, 1, 2, 0, 1]),
        size=torch.tensor([3, 2]),
        distribution=torch.tensor([0.2, 0.5, 0.3, 0.9, 0.1]),
    )


def prediction(predictor: PreferencePredictor) -> list[float]:
    batch = asked()
    return predictor.eval().predict(batch, batch.without_answers()).tolist()


def replies() -> dict[str, RecordDict]:
    """What nodes sent, by its name in golden.json."""
    rounded = rounding.encode(RECEIVED | {"matrix": RECEIVED["matrix"] + UPDATE}, RECEIVED)
    return {
        "reply": packed(trained(to_record(ARRAYS), REPORT, None)),
        "reply_bfloat16": packed(trained(to_record(rounded), REPORT, None)),
        "reply_scores": packed(trained(to_record(ARRAYS), REPORT, SCORES)),
        "introduction": packed(INTRODUCTION.records()),
    }


def stored(content: RecordDict) -> dict[str, Any]:
    """Return a message's records as JSON."""
    records: dict[str, Any] = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            [(array, value)] = record.items()
            records[name] = {"name": array, "bytes": value.numpy().tobytes().hex()}
        else:
            records[name] = dict(record)
    return records


def rebuilt(records: dict[str, Any]) -> RecordDict:
    """Return the message that golden.json holds."""
    content = RecordDict()
    for name, record in records.items():
        if "bytes" in record:
            data = np.frombuffer(bytes.fromhex(record["bytes"]), np.uint8)
            content[name] = to_record({record["name"]: data})
        elif all(isinstance(value, int | float) for value in record.values()):
            content[name] = MetricRecord(record)
        else:
            content[name] = ConfigRecord(record)
    return content


def write_model() -> None:
    predictor = initial_predictor(CONFIG, 2 * DIMENSION, "golden")
    predictor.save_pretrained(FOLDER / "model")
    _keep(prediction=prediction(predictor), run_config=CONFIG.to_run_config())


def write_messages() -> None:
    _keep(**{name: stored(content) for name, content in replies().items()})


def write_run() -> None:
    """Run the tiny federation and keep what readers need, without this machine's paths."""
    folder = FOLDER / "run"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        config = tiny_config(
            Path(place), num_server_rounds=2, checkpoint_every=2, early_stopping_patience=2,
            strategy="fedadam",
        )  # fmt: skip
        run = tiny_run(config)
        newest = checkpoint.newest(run / "checkpoints")
        shutil.copytree(newest, folder / "checkpoints" / newest.name)
        for name in ("run.json", "metrics.jsonl", "summary.json"):
            text = (run / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace(place, "/runs"), encoding="utf-8")


def _keep(**values: Any) -> None:
    file = FOLDER / "golden.json"
    kept = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


WRITERS = {"model": write_model, "messages": write_messages, "run": write_run}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[1:] or WRITERS:
        WRITERS[kind]()
