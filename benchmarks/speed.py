"""How fast: a training step, an evaluation and a round, ours against the published formulation.

Both sides alternate in one process on one thread; times are CPU seconds of the process, which
other work on the machine moves less than the clock on the wall; medians over repeats. Prints a
table and writes speed.json beside this file. About two minutes, with a data set twice that.

    python benchmarks/speed.py --dataset path/to/global_opinions.csv
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convergence import to_reach
from released_code import ReleasedNetwork
from store import read, script
from trained import PUBLISHED, configured

from pluralllm_fl.arrays import IntArray
from pluralllm_fl.config import RunConfig, embedding_parts
from pluralllm_fl.evaluation.baselines import federated
from pluralllm_fl.predictor.episodes import EpisodeSampler, GroupTable, QuestionBatch
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor
from pluralllm_fl.predictor.optimizer import FlatAdamW
from pluralllm_fl.predictor.published import PublishedNetwork
from pluralllm_fl.preferences import GroupPreferences, Question
from pluralllm_fl.workspace import open_workspace

PUBLISHED_ROUNDS = int(PUBLISHED["num-server-rounds"])
# Share of GlobalOpinionQA's questions that have so many options.
OPTIONS = {2: 0.20, 3: 0.13, 4: 0.24, 5: 0.19, 6: 0.08, 7: 0.09, 8: 0.02, 13: 0.05}
QUESTIONS, CONTEXT, DIMENSION = 1000, 20, 384
RELEASED = "released code"


def row_length(config: RunConfig) -> int:
    """Return the length of a row of MiniLM's embeddings."""
    return DIMENSION * len(embedding_parts(config.embedding_template))


def made_up(questions: int, seed: int, length: int) -> GroupTable:
    """Return a group with random answers and embeddings and real numbers of options."""
    rng = np.random.default_rng(seed)
    share = np.array(list(OPTIONS.values()))
    sizes = rng.choice(list(OPTIONS), questions, p=share / share.sum())
    asked = [
        Question(f"Question {i}?", tuple(f"option {j}" for j in range(n)))
        for i, n in enumerate(sizes)
    ]
    first = {q.id: int(s) for q, s in zip(asked, sizes.cumsum() - sizes, strict=True)}
    vectors = torch.from_numpy(rng.standard_normal((sizes.sum(), length), dtype=np.float32))
    answers = {q: rng.dirichlet(np.ones(len(q.options))) for q in asked}
    return GroupTable.build(
        GroupPreferences(f"Group {seed}", answers), vectors, first,
        seed=0, validation_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compared(ours: list[float], other: list[float], name: str) -> dict[str, Any]:
    """Return both medians and the median of the ratios of neighbours, other / ours.

    The other side goes by its name.
    """
    return {
        "other": name,
        "ours_ms": 1e3 * statistics.median(ours),
        "other_ms": 1e3 * statistics.median(other),
        "ratio": statistics.median(b / a for a, b in zip(ours, other, strict=True)),
    }


def episodes(
    table: GroupTable, config: RunConfig, number: int
) -> list[tuple[QuestionBatch, QuestionBatch]]:
    """Draw context and targets as the published recipe does."""
    sampler = EpisodeSampler(
        (config.context_min, config.context_max), (config.target_min, config.target_max)
    )
    rng, pool = np.random.default_rng(0), table.members("train")
    drawn = [sampler.sample(pool, rng) for _ in range(number)]
    return [(table.batch(context), table.batch(targets)) for context, targets in drawn]


def training_step(repeats: int) -> dict[str, Any]:
    """Time forward, backward and Adam of the published architecture on the same episodes."""
    config = configured("published", "", 0, ())
    length = row_length(config)
    predictor = initial_predictor(config, length, "").train()
    assert isinstance(predictor.network, PublishedNetwork)
    released = ReleasedNetwork(predictor.network, config.heads)
    drawn = episodes(made_up(QUESTIONS, 0, length), config, repeats)
    apart = {"loss": 0.0, "gradient": 0.0}
    for context, targets in drawn[:3]:
        own = prediction_loss(*predictor(context, targets), targets, config.loss)
        their = released.loss(context, targets)
        torch.autograd.backward([own, their])
        apart["loss"] = max(apart["loss"], abs(own.item() - their.item()))
        for a, b in zip(predictor.network.parameters(), released.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            apart["gradient"] = max(apart["gradient"], (a.grad - b.grad).abs().max().item())
            a.grad = b.grad = None
    optimizer = FlatAdamW(list(predictor.network.parameters()), config.learning_rate, 0.0)
    adam = torch.optim.Adam(released.parameters(), config.learning_rate)

    def step(context: Any, targets: Any) -> None:
        loss = prediction_loss(*predictor(context, targets), targets, config.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def released_step(context: Any, targets: Any) -> None:
        adam.zero_grad()
        released.loss(context, targets).backward()  # type: ignore[no-untyped-call]
        adam.step()

    step(*drawn[0])
    released_step(*drawn[0])
    pairs = [
        (cpu_seconds(lambda: step(*e)), cpu_seconds(lambda: released_step(*e)))  # noqa: B023
        for e in drawn
    ]
    ours, other = zip(*pairs, strict=True)
    found = compared(list(ours), list(other), RELEASED)
    return found | {f"{k}_apart": v for k, v in apart.items()}


def evaluation(recipe: str, sample: int, repeats: int) -> dict[str, Any]:
    """Time all targets of a group in one pass against context and one question at a time.

    The latter is timed on a sample of the questions. The published recipe's is that of its
    own code; ours is our predictor, called for every question anew.
    """
    config = configured(recipe, "", 0, ())
    length = row_length(config)
    predictor = initial_predictor(config, length, "").eval()
    table = made_up(QUESTIONS, 0, length)
    context, targets = np.arange(CONTEXT), np.arange(CONTEXT, QUESTIONS)
    shown, asked = table.batch(context), table.batch(targets).without_answers()
    alone = one_at_a_time(predictor, config, table)
    sampled = np.linspace(0, len(targets) - 1, sample).astype(int)
    together = torch.split(predictor.predict(shown, asked), table.size[targets].tolist())
    apart = max((alone(targets[i]) - together[i]).abs().max().item() for i in sampled)
    ours, other = [], []
    for _ in range(repeats):
        ours.append(cpu_seconds(lambda: predictor.predict(shown, asked)))
        seconds = cpu_seconds(lambda: [alone(targets[i]) for i in sampled])
        other.append(seconds * len(targets) / sample)
    code = RELEASED if recipe == "published" else "our predictor"
    found = compared(ours, other, f"{code}, one question at a time") | {"outputs_apart": apart}
    return found | {"questions": len(targets), "sampled": sample}


def one_at_a_time(
    predictor: PreferencePredictor, config: RunConfig, table: GroupTable
) -> Callable[[int], torch.Tensor]:
    """Return what predicts one question from the context anew."""
    shown: IntArray = np.arange(CONTEXT)
    if not isinstance(predictor.network, PublishedNetwork):
        return lambda i: predictor.predict(table.batch(shown), table.batch([i]).without_answers())
    released = ReleasedNetwork(predictor.network, config.heads).eval()
    return torch.no_grad()(lambda i: released(table.batch(shown), table.batch([i]))[0])


def rounds(dataset: str, repeats: int, measured: Path) -> dict[str, Any]:
    """Time a round of both recipes after the first, alternating, with the data opened before.

    And compare what both need to the published recipe's final alignment, by the rounds that
    convergence.py measured.
    """
    seconds: dict[str, list[float]] = {"ours": [], "published": []}
    for _ in range(repeats):
        for name, of_name in seconds.items():
            workspace = open_workspace(configured(name, dataset, 0, ("num-server-rounds = 2",)))
            for group in workspace.seen:
                workspace.table(group)
            ends: list[float] = []
            federated(workspace, workspace.config, lambda *_: ends.append(time.process_time()))  # noqa: B023
            of_name.append(ends[1] - ends[0])
    ours, published = (statistics.median(of_name) for of_name in seconds.values())
    found = {
        "dataset": Path(dataset).name,
        "our_seconds_a_round": ours,
        "published_seconds_a_round": published,
        "published_rounds": PUBLISHED_ROUNDS,
        "seconds": seconds,
    }
    store = read(measured)
    target = {run["seed"]: run["curve"][-1]["unseen"] for run in store.runs.get("published", [])}
    reached = [
        to_reach(run, target[run["seed"]])
        for run in store.runs.get("ours", [])
        if run["seed"] in target
    ]
    if reached and all(reached):
        needed = statistics.mean(point["rounds"] for point in reached if point)
        ratio = PUBLISHED_ROUNDS * published / (needed * ours)
        found |= {"our_rounds_to_published_alignment": needed, "ratio": ratio}
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="", help="also time rounds on this survey")
    parser.add_argument("--repeats", type=int, default=30, help="training steps to time")
    parser.add_argument("--sample", type=int, default=49, help="questions asked one at a time")
    parser.add_argument("--runs", type=Path, default=Path(__file__).with_name("convergence.json"),
                        help="rounds to the published alignment: %(default)s")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    record: dict[str, Any] = {
        "training_step": training_step(arguments.repeats),
        "evaluation": {
            architecture: evaluation(recipe, arguments.sample, 5)
            for architecture, recipe in (("published", "published"), ("transformer", "ours"))
        },
    }
    if arguments.dataset:
        record["rounds"] = rounds(arguments.dataset, 2, arguments.runs)
    rows = {"training step": record["training_step"]}
    rows |= {f"evaluation, {name}": row for name, row in record["evaluation"].items()}
    print("| one thread, CPU time | ours, ms | other, ms | ratio | other |\n|" + 5 * "---|")
    for name, row in rows.items():
        print(f"| {name} | {row['ours_ms']:.1f} | {row['other_ms']:.1f} | {row['ratio']:.1f} | "
              f"{row['other']} |")  # fmt: skip
    if arguments.dataset:
        for key, value in record["rounds"].items():
            if isinstance(value, float):
                print(f"{key.replace('_', ' ')}: {value:.2f}")
    record |= {
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "versions": {"torch": version("torch"), "python": platform.python_version()},
        "machine": {"arch": platform.machine(), "cores": os.cpu_count(), "threads": 1},
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
