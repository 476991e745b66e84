"""Which language model? The same recipe on embeddings of several, and on random vectors.

Trains on the paper's split with every model, over seeds. Random vectors, equal for equal texts,
say what is left when texts can be told apart but mean nothing. Prints a table and writes
embedders.json beside this file. The first run with a model embeds all texts of the survey, which
are kept.

    python benchmarks/embedders.py --dataset path/to/global_opinions.csv \\
        --models mpnet=path/to/all-mpnet-base-v2 smollm2=path/to/SmolLM2-135M-Instruct.gguf
"""

import time
from dataclasses import replace
from tempfile import TemporaryDirectory

import torch
from store import Run, Store, measured, options, script, shared_facts, show
from trained import HISTORY, all_measures, configured, train

from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.evaluation.baselines import with_random_vectors
from pluralllm_fl.workspace import open_workspace, read_dataset

DEFAULT = {"MiniLM": "auto"}
RANDOM = "random"
TIMED_QUESTIONS = 50


def run(name: str, model: str, dataset: str, changes: list[str], seed: int) -> dict[str, Run]:
    """Train on one model's embeddings; random vectors take the place of the default model's."""
    torch.set_num_threads(1)
    config = configured("ours", dataset, seed, changes)
    workspace = open_workspace(replace(config, embedding_model=model))
    if name == RANDOM:
        workspace = with_random_vectors(workspace)
    predictor = train("ours", workspace)
    dimension = workspace.vectors.shape[1]
    return {
        name: {"seed": seed, "dimension": dimension, "measures": all_measures(predictor, workspace)}
    }


def milliseconds_a_text(model: str, dataset: str, changes: list[str]) -> float:
    """Embed every n-th question afresh, with as many threads as there are cores."""
    config = configured("ours", dataset, 0, changes)
    questions = read_dataset(config).questions
    sample = questions[:: max(1, len(questions) // TIMED_QUESTIONS)]
    with TemporaryDirectory() as cache:
        embedder = TextEmbedder(
            model, config.embedding_pooling, config.embedding_template, cache, config.device
        )
        embedder.load()
        start = time.perf_counter()
        embedder.embed(sample)
        seconds = time.perf_counter() - start
        texts = {t for q in sample for option in q.options for t in embedder.render(q.text, option)}
        return 1e3 * seconds / len(texts)


def main() -> None:
    """Run all seeds of the models."""
    parser = options(__doc__, __file__)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=PATH")
    arguments = parser.parse_args()
    if wrong := [text for text in arguments.models if not all(text.partition("="))]:
        parser.error(f"--models {wrong[0]}: write NAME=PATH")
    models = DEFAULT | dict(text.split("=", 1) for text in arguments.models)
    speeds = {
        name: milliseconds_a_text(model, arguments.dataset, arguments.set)
        for name, model in models.items()
    }
    models[RANDOM] = DEFAULT["MiniLM"]
    about = shared_facts(arguments)
    del about["embedder"]
    store = Store(arguments.output, about)
    tasks = [
        (name, model, arguments.dataset, arguments.set, seed)
        for seed in range(arguments.seeds)
        for name, model in models.items()
    ]
    store.measure(run, tasks, list(models), arguments.processes)
    for name, speed in speeds.items():
        for found in store.runs[name]:
            found["measures"]["milliseconds a text"] = speed
    measures = list(next(iter(store.runs.values()))[0]["measures"])
    table = {
        label: {name: store.over_seeds(name, measured(label)) for name in store.runs}
        for label in measures
    }
    differences = {
        label: {
            f"{name} − {RANDOM}": store.paired((name, measured(label)), (RANDOM, measured(label)))
            for name in store.runs
            if name != RANDOM and not name.startswith(HISTORY)
        }
        for label in ("unseen alignment", "unseen, test questions")
    }
    store.write(table=table, differences=differences)
    show("measure", table, list(store.runs))
    show("paired difference", differences, list(next(iter(differences.values()))))


if __name__ == "__main__":
    script(main)
