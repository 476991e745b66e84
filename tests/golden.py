"""Write the artefacts of this version that later versions must load, or refuse in words.

    python -m tests.golden

Run it only when a format changes on purpose, and say so in CHANGELOG.md.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from pluralllm_fl.config import RunConfig
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor
from pluralllm_fl.wire.messages import TrainingReport, trained
from pluralllm_fl.wire.packing import packed
from pluralllm_fl.wire.records import to_record

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


def reply() -> RecordDict:
    return packed(trained(to_record(ARRAYS), REPORT, None))


def rebuilt(stored: dict[str, Any]) -> RecordDict:
    """Return the packed reply that golden.json holds."""
    content = RecordDict()
    for name, record in stored.items():
        if "bytes" in record:
            data = np.frombuffer(bytes.fromhex(record["bytes"]), np.uint8)
            content[name] = to_record({record["name"]: data})
        elif name.startswith("layout/"):
            content[name] = ConfigRecord(record)
    return content


def main() -> None:
    torch.set_num_threads(1)
    predictor = initial_predictor(CONFIG, 2 * DIMENSION, "golden")
    predictor.save_pretrained(FOLDER / "model")
    stored: dict[str, Any] = {"prediction": prediction(predictor)}
    stored["run_config"] = CONFIG.to_run_config()
    records: dict[str, Any] = {}
    for name, record in reply().items():
        if isinstance(record, ArrayRecord):
            [(array, value)] = record.items()
            records[name] = {"name": array, "bytes": value.numpy().tobytes().hex()}
        else:
            records[name] = dict(record)
    stored["reply"] = records
    (FOLDER / "golden.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
