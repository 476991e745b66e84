"""A language model's answers beside the predictor's, and best of n picked by the predictor.

Trains the default configuration once and asks a policy every test question once, without naming a
group, in up to four orders of the options. Then, over seeds, draws 100 test questions and the 20
answers that the predictor reads of each group. Best of n is computed exactly: no answer is drawn.
Prints a table and writes align.json beside this file. It keeps the policy's letters, so that the
same policy is not asked again.

    python benchmarks/align.py --dataset path/to/global_opinions.csv --policy path/to/policy
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from store import Run, Store, measured, options, script, shared_facts, show
from trained import prepare, train

from pluralllm_fl.alignment.answering import LetterAnswer, letter_answers, rotations
from pluralllm_fl.alignment.evaluate import of_base, references
from pluralllm_fl.alignment.measures import measure, summary
from pluralllm_fl.alignment.picks import agreement_by_size
from pluralllm_fl.alignment.policy import load_policy
from pluralllm_fl.alignment.sheets import Sheet, draw_questions, sheets
from pluralllm_fl.alignment.targets import Subject, context_of
from pluralllm_fl.inference import Pluralist
from pluralllm_fl.preferences import Question
from pluralllm_fl.workspace import text_embedder

RECIPE = "ours"
QUESTIONS = 100  # of a seed
ORDERS = 4
SIZES = (1, 2, 4, 16)
SIDES = ("seen", "unseen")
Letters = dict[Question, LetterAnswer]


def main() -> None:
    """Train, ask, and run all seeds."""
    parser = options(__doc__, __file__)
    parser.add_argument("--policy", required=True, help="folder, .gguf file or hub id")
    arguments = parser.parse_args()
    about = {"policy": Path(arguments.policy).name, "orders": ORDERS, "questions": QUESTIONS}
    store = Store(arguments.output, shared_facts(arguments) | about)
    kept = _kept(arguments.output)
    workspace = prepare(RECIPE, arguments.dataset, 0, arguments.set)
    pool = draw_questions(workspace, "new", len(workspace.dataset.questions), 0)
    letters = ask(arguments.policy, pool, kept)
    store.write(letters=_as_lists(letters))
    embedder = text_embedder(workspace.config)
    pluralist = Pluralist(train(RECIPE, workspace), embedder)
    for side in SIDES:
        store.runs[side] = []
    for seed in range(arguments.seeds):
        for side, found in run(fitted(pluralist, workspace, seed), letters, seed).items():
            store.runs[side].append(found)
        print(f"{seed + 1}/{arguments.seeds}", flush=True)
    table = {
        label: {side: store.over_seeds(side, measured(label)) for side in SIDES}
        for label in store.runs[SIDES[0]][0]["measures"]
    }
    store.write(letters=_as_lists(letters), table=table)
    show(f"{about['policy']}, new questions", table, SIDES)


def fitted(pluralist: Pluralist, workspace: Any, seed: int) -> Subject:
    """Fit the predictor to a draw of each group's answers, on the split of the training."""
    for group in workspace.groups:
        workspace.table(group)  # built now: its split is by the training's seed
    drawn = replace(workspace, config=replace(workspace.config, seed=seed))
    groups = {group: pluralist.fit(context_of(drawn, group)) for group in workspace.groups}
    return Subject(workspace, groups, (), 0)


def run(subject: Subject, letters: Letters, seed: int) -> dict[str, Run]:
    """Measure one draw of questions and contexts."""
    drawn = draw_questions(subject.workspace, "new", QUESTIONS, seed)
    papers = sheets(subject, {"new": drawn})
    base = of_base({(q, None): answer for q, answer in letters.items()}, named=False)
    given = references(papers) | base
    found = {}
    for side in SIDES:
        members = [sheet for sheet in papers if sheet.side == side]
        measures = {}
        for name, answers in given.items():
            row = summary(members, [measure(s, answers(s)) for s in members], {})
            for key in ("alignment", "top", "agreement"):
                measures[f"{name}: {key}"] = row[key]
        found[side] = {"seed": seed, "measures": measures | picks(members, letters)}
    return found


def picks(members: list[Sheet], letters: Letters) -> dict[str, float]:
    """Measure best of n of the policy's own letters, averaged over the groups."""
    answers = {q: answer.distribution for q, answer in letters.items()}
    reached = agreement_by_size(members, answers, SIZES)
    found = {
        f"best of {n}: {key}": float(np.mean([row[n][key] for row in reached.values()]))
        for n in SIZES
        for key in ("agreement", "alignment")
    }
    rise = [row[SIZES[-1]]["agreement"] > row[1]["agreement"] for row in reached.values()]
    return found | {
        "groups": float(len(rise)),
        "groups where best of 16 is above 1": float(sum(rise)),
    }


def ask(source: str, questions: list[Question], kept: dict[str, Any]) -> Letters:
    """Return the policy's letters, asking what is not kept."""
    missing = [q for q in questions if q.id not in kept]
    found: Letters = {}
    if missing:
        policy = load_policy(source, "cpu")
        asked = [(q, None) for q in missing]
        answers = letter_answers(policy, asked, ORDERS, on_batch=lambda *at: print(*at, flush=True))
        found = dict(zip(missing, answers, strict=True))
    for q in questions:
        if q.id in kept:
            found[q] = LetterAnswer(rotations(len(q.options), ORDERS), np.array(kept[q.id]))
    return found


def _kept(path: Path) -> dict[str, Any]:
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(held.get("letters", {}))


def _as_lists(letters: Letters) -> dict[str, Any]:
    return {q.id: np.round(a.log_probability, 4).tolist() for q, a in sorted(
        letters.items(), key=lambda item: item[0].id
    )}  # fmt: skip


if __name__ == "__main__":
    script(main)
