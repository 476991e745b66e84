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
from released_code import ReleasedNetwork
from store import script
from trained import PUBLISHED, configured

from pluralllm_fl.baselines import federated
from pluralllm_fl.config import RunConfig, embedding_parts
from pluralllm_fl.episodes import GroupTable, IntArray
from pluralllm_fl.evaluation import evaluate_group
from pluralllm_fl.memory import remember
from pluralllm_fl.optimizer import FlatAdamW
from pluralllm_fl.pluralistic import PluralisticNetwork
from pluralllm_fl.predictor import PreferencePredictor, initial_predictor
from pluralllm_fl.preferences import GroupPreferences, Question
from pluralllm_fl.published import PublishedNetwork
from pluralllm_fl.training import episodes, prediction_loss
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


def training_step(repeats: int) -> dict[str, Any]:
    """Time forward, backward and Adam of the published architecture on the same episodes."""
    config = configured("published", "", 0, ())
    length = row_length(config)
    predictor = initial_predictor(config, length, "").train()
    assert isinstance(predictor.network, PublishedNetwork)
    released = ReleasedNetwork(predictor.network, config.heads)
    drawn = list(episodes(made_up(QUESTIONS, 0, length), config, np.random.default_rng(0), repeats))
    apart = {"loss": 0.0, "gradient": 0.0}
    for context, targets in drawn[:3]:
        own = prediction_loss(predictor(context, targets), targets, config.loss)
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
        loss = prediction_loss(predictor(context, targets), targets, config.loss)
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
    network, table = predictor.network, made_up(QUESTIONS, 0, length)
    if isinstance(network, PluralisticNetwork):
        for prototype in range(config.prototypes):
            answers = made_up(100, 1 + prototype, length)
            remember(network, answers.batch(range(100)), prototype=prototype, ridge=0.1)
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


def rounds(dataset: str, repeats: int) -> dict[str, Any]:
    """Time the first round of both recipes, alternating; data opened before the clock starts."""
    recipes = ("ours", "published")
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    reached = 0.0
    for _ in range(repeats):
        for name in recipes:
            config = configured(name, dataset, 0, ("num-server-rounds = 1",))
            workspace = open_workspace(config)
            for group in workspace.groups:
                workspace.table(group)
            done: list[PreferencePredictor] = []
            seconds[name].append(
                cpu_seconds(lambda: done.append(federated(workspace, config, lambda *_: None)))  # noqa: B023
            )
            if name == "ours":
                scores = [
                    evaluate_group(
                        done[0].eval(), workspace.table(group), context_questions=CONTEXT, seed=0
                    )["all"].alignment
                    for group in workspace.unseen
                ]
                reached = float(np.mean(scores))
    ours, published = (statistics.median(seconds[name]) for name in recipes)
    return {
        "dataset": Path(dataset).name,
        "ours_first_round_seconds": ours,
        "published_seconds_a_round": published,
        "published_rounds": PUBLISHED_ROUNDS,
        "ratio": PUBLISHED_ROUNDS * published / ours,
        "our_unseen_alignment_after_it": reached,
        "seconds": seconds,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="", help="also time rounds on this survey")
    parser.add_argument("--repeats", type=int, default=30, help="training steps to time")
    parser.add_argument("--sample", type=int, default=49, help="questions asked one at a time")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    record: dict[str, Any] = {
        "training_step": training_step(arguments.repeats),
        "evaluation": {
            architecture: evaluation(recipe, arguments.sample, 5)
            for architecture, recipe in (("published", "published"), ("pluralistic", "ours"))
        },
    }
    if arguments.dataset:
        record["rounds"] = rounds(arguments.dataset, 2)
    rows = {"training step": record["training_step"]}
    rows |= {f"evaluation, {name}": row for name, row in record["evaluation"].items()}
    print("| one thread, CPU time | ours, ms | other, ms | ratio | other |\n|" + 5 * "---|")
    for name, row in rows.items():
        print(f"| {name} | {row['ours_ms']:.1f} | {row['other_ms']:.1f} | {row['ratio']:.1f} | "
              f"{row['other']} |")  # fmt: skip
    if arguments.dataset:
        print(f"{PUBLISHED_ROUNDS} published rounds / our first: {record['rounds']['ratio']:.1f}")
    record |= {
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "versions": {"torch": version("torch"), "python": platform.python_version()},
        "machine": {"arch": platform.machine(), "cores": os.cpu_count(), "threads": 1},
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
