"""Free-form answers: does the same meaning in five wordings keep the ranking of the options?

Every option of a test question gets one of five wordings by chance. Kendall's tau compares the
worded options' scores with those of the bare options, for each unseen group with 20 of its answers.
Trains the default recipe first, unless a run on the data set is named. Prints a table and writes
style.json beside this file. About five minutes.

    python benchmarks/style.py --dataset path/to/global_opinions.csv
"""

import argparse
import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from store import script
from trained import prepare, train

from pluralllm_fl import Pluralist
from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.embedding.nearest import nearest_options
from pluralllm_fl.inference import ConditionedGroup
from pluralllm_fl.metrics import bootstrap_interval
from pluralllm_fl.preferences import Question, question_split
from pluralllm_fl.reward import PluralisticReward
from pluralllm_fl.workspace import text_embedder

WORDINGS = (
    "{}",
    "I think {}.",
    "If you ask me, the answer is {}, at least for the time being.",
    "Well, it depends a little on the circumstances, and I know that many people around me see it "
    "differently, but when I think about it for a while I would have to say {}, honestly.",
    "{}, that would be my choice.",
)
CONTEXT = 20


def worded(option: str, wording: int) -> str:
    """Put an option into a sentence; within one it begins with a small letter."""
    if not wording:
        return option
    return WORDINGS[wording].format(option[:1].lower() + option[1:])


def scores(group: ConditionedGroup, question: Question, texts: list[str]) -> dict[str, FloatArray]:
    """Score worded options in every way."""
    bare = group.predict_log_proba([question])[0]
    by_vector = nearest_options(group.pluralist.embedder, [(question, text) for text in texts])
    read = PluralisticReward({"one": group}, nearest=True)(
        [question.text] * len(texts), texts, options=[question.options] * len(texts)
    )
    return {
        "bare": bare,
        "as a set of their own": group.predict_log_proba([(question.text, texts)])[0],
        "nearest vector alone": bare[by_vector],
        "quoted option, else nearest vector": np.array(read, dtype=np.float64),
    }


def trained(dataset: str) -> Pluralist:
    """Train the default recipe in this process."""
    workspace = prepare("ours", dataset, 0, ())
    return Pluralist(train("ours", workspace), text_embedder(workspace.config))


def measure(pluralist: Pluralist, dataset: str, number: int) -> dict[str, Any]:
    """Return tau of every way, with an interval over questions."""
    data = load_dataset(dataset)
    rng = np.random.default_rng(0)
    new = [q for q in data.questions if question_split(q, 0, 0.1, 0.1) == "test"][:number]
    order = {q: rng.integers(len(WORDINGS), size=len(q.options)).tolist() for q in new}
    tau: dict[str, list[float]] = defaultdict(list)
    right: list[float] = []
    for name in data.default_unseen:
        answers = data.groups[name].answers
        shown = [q for q in answers if question_split(q, 0, 0.1, 0.1) == "train"][:CONTEXT]
        group = pluralist.fit({(q.text, q.options): answers[q] for q in shown})  # type: ignore[misc]
        for question in new:
            pairs = zip(question.options, order[question], strict=True)
            found = scores(group, question, [worded(*pair) for pair in pairs])
            bare = found.pop("bare")
            for way, values in found.items():
                value = kendalltau(bare, values).statistic
                tau[way].append(0.0 if np.isnan(value) else float(value))
            right.append(float(np.mean(found["quoted option, else nearest vector"] == bare)))
    rows = {
        way: {
            "tau": float(np.mean(values)),
            # Groups share the wordings of a question: the interval is over questions.
            "interval": bootstrap_interval(
                np.array(values).reshape(len(data.default_unseen), -1).mean(axis=0), seed=0
            ),
        }
        for way, values in tau.items()
    }
    return {"questions": len(new), "groups": len(data.default_unseen), "ways": rows,
            "options read right": float(np.mean(right))}  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--run", type=Path, help="a run on this data set, instead of training")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    run, dataset = arguments.run, arguments.dataset
    pluralist = Pluralist.from_pretrained(run) if run else trained(dataset)
    record = measure(pluralist, dataset, arguments.questions)
    print("| worded options scored | Kendall tau | 95% interval |\n|---|---|---|")
    for way, row in record["ways"].items():
        low, high = row["interval"]
        print(f"| {way} | {row['tau']:.3f} | {low:.3f} to {high:.3f} |")
    print(f"options read right: {record['options read right']:.3f}")
    record |= {"wordings": WORDINGS, "versions": {"torch": version("torch")}}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
