"""What a predictor must beat: references without learning, from pooled answers.

No federation may have them. All but `uniform` read raw answers of seen groups; those called an
oracle read them on held-out questions too, where a predictor has none. A seen group that is
asked is left out of its own reference.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
from scipy.optimize import linear_sum_assignment

from pluralllm_fl.arrays import FloatArray, IntArray, option_rows, owners, starts
from pluralllm_fl.evaluation.scores import (
    EvaluationSplit,
    beside_answers,
    context_and_targets,
    score_targets,
)
from pluralllm_fl.evaluation.standing import SPLITS
from pluralllm_fl.metrics import alignment, noise_floor
from pluralllm_fl.predictor.episodes import GroupTable
from pluralllm_fl.preferences import QuestionSplit
from pluralllm_fl.workspace import Workspace

# A group's table, context and target questions by index, (questions,) each -> shares of the
# targets' options, (N,).
Reference = Callable[[GroupTable, IntArray, IntArray], FloatArray]
# A group and a split of its questions -> a score; None: not known.
Measure = Callable[[str, EvaluationSplit], float | None]

EVERY_SPLIT: tuple[QuestionSplit, ...] = ("train", "validation", "test")
SHARPNESS = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0)  # tried for the memory


def uniform(table: GroupTable, context: IntArray, targets: IntArray) -> FloatArray:  # noqa: ARG001
    """Predict that all options are equally likely.

    Questions are given by index, (questions,) each; returned are shares of the targets' options,
    (N,).
    """
    size = table.size[targets]
    return np.repeat(1.0 / size, size)


def seen_mean(workspace: Workspace) -> Reference:
    """Oracle: the seen groups' mean answer to the very question; uniform where none answered.

    Where they judged other candidates of the prompt too, those in common count.
    """
    answers = _with_other_lists(workspace, seen_answers(workspace, *EVERY_SPLIT))

    def predict(table: GroupTable, context: IntArray, targets: IntArray) -> FloatArray:  # noqa: ARG001
        return _recalled(answers, _others(workspace, table.group), table, targets)

    return predict


def agreement_memory(workspace: Workspace) -> Reference:
    """Oracle: as `seen_mean`, each group weighted by ``exp(sharpness * agreement)``.

    Agreement is the mean alignment with the context on shared questions; a group that shares none
    counts as the average of the others. The sharpness is the best for the seen groups, each
    predicted from the others.
    """
    config, answers = workspace.config, seen_answers(workspace, *EVERY_SPLIT)

    def weigh(table: GroupTable, agreed: FloatArray, sharpness: float) -> FloatArray:
        score = sharpness * agreed
        weight: FloatArray = np.exp(score - score.max()) * _others(workspace, table.group)
        return weight

    seen = []
    for table in map(workspace.table, workspace.seen):
        shown, asked = context_and_targets(table, "all", config.context_questions, config.seed)
        seen.append((table, asked, agreement(answers, table, shown)))

    def score(sharpness: float) -> float:
        scores = []
        for table, asked, agreed in seen:
            predicted = _recalled(answers, weigh(table, agreed, sharpness), table, asked)
            scores.append(beside_answers(predicted, table, asked).alignment.mean())
        return float(np.mean(scores))

    best = max(SHARPNESS, key=score)

    def predict(table: GroupTable, context: IntArray, targets: IntArray) -> FloatArray:
        agreed = agreement(answers, table, context)
        return _recalled(answers, weigh(table, agreed, best), table, targets)

    return predict


def nearest_question(workspace: Workspace) -> Reference:
    """Copy the seen groups' mean answer to the nearest training question; uniform without any.

    Nearest by the cosine of question vectors among those with as many options, a training question
    itself being its own nearest. Options are matched by the assignment with the largest sum of
    inner products of option vectors. Where the template embeds questions and options apart, these
    are the two halves of a row; else rows are option vectors, and their means question vectors.
    """
    answers = seen_answers(workspace, "train")
    vectors = workspace.vectors.double().cpu().numpy()
    about, option = vectors[:, : workspace.dimension], vectors[:, -workspace.dimension :]
    first, size = question_rows(workspace)
    direction = _directions(about, first, size)

    def predict(table: GroupTable, context: IntArray, targets: IntArray) -> FloatArray:  # noqa: ARG001
        mean = weighted_mean(answers, _others(workspace, table.group))
        known = np.flatnonzero(~np.isnan(mean[first]))
        own_first, own_size = table.first_row[targets], table.size[targets]
        cosine = _directions(about, own_first, own_size) @ direction[known].T
        cosine[own_size[:, None] != size[known]] = -np.inf
        cosine[own_first[:, None] == first[known]] = np.inf
        predicted = []
        for row, start, options in zip(cosine, own_first, own_size, strict=True):
            if row.max(initial=-np.inf) == -np.inf:
                predicted.append(np.full(options, 1 / options))
                continue
            rows = first[known[row.argmax()]] + np.arange(options)
            similar = option[start : start + options] @ option[rows].T
            predicted.append(mean[rows][linear_sum_assignment(similar, maximize=True)[1]])
        return np.concatenate(predicted) if predicted else np.zeros(0)

    return predict


def reference_alignment(
    workspace: Workspace, reference: Reference, group: str, split: EvaluationSplit = "all"
) -> float | None:
    """Score a reference on the questions that a predictor is scored on; None without any."""
    table, context, targets = _asked(workspace, group, split)
    if not len(targets):
        return None
    predicted = reference(table, context, targets)
    return score_targets(beside_answers(predicted, table, targets)).alignment


def group_noise_floor(workspace: Workspace, group: str, split: EvaluationSplit) -> float | None:
    """Average the noise floor over the questions that a predictor is scored on.

    None without any, or if the source does not say of each how many people answered.
    """
    table, _, targets = _asked(workspace, group, split)
    known = workspace.dataset.groups[group].respondents
    respondents = [known[q] for i in targets if (q := table.questions[i]) in known]
    if not respondents or len(respondents) < len(targets):
        return None
    question = owners(table.size[targets])
    shares = table.answers(targets).astype(np.float64)
    offered = table.offers(targets)
    return float(noise_floor(shares, np.array(respondents), question, offered).mean())


def references_by_side(
    workspace: Workspace, sides: Mapping[str, Iterable[str]], *, marginal: bool = True
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Average marginal and noise floor over the groups of each side, on each kind of questions.

    Parameters
    ----------
    sides : mapping of str to iterable of str
        Side ("seen", "unseen") -> its groups.
    marginal : bool
        Whether the seen groups of the workspace answered these questions.

    Returns
    -------
    dict
        Reference -> side -> kind of questions (as in `standing.SPLITS`) -> mean over groups.
    """
    measures: dict[str, Measure] = {"noise_floor": partial(group_noise_floor, workspace)}
    if marginal:
        measures["marginal"] = partial(reference_alignment, workspace, seen_mean(workspace))

    def mean(measure: Measure, groups: Iterable[str], split: EvaluationSplit) -> float | None:
        asked = [group for group in groups if len(_asked(workspace, group, split)[2])]
        values = [value for group in asked if (value := measure(group, split)) is not None]
        # Of some groups alone it would not be comparable with the predictor's score of all.
        return float(np.mean(values)) if values and len(values) == len(asked) else None

    return {
        name: {
            side: {kind: mean(measure, groups, split) for kind, split in SPLITS.items()}
            for side, groups in sides.items()
        }
        for name, measure in measures.items()
    }


def _asked(
    workspace: Workspace, group: str, split: EvaluationSplit
) -> tuple[GroupTable, IntArray, IntArray]:
    """Return a group's table, and the context and targets that a predictor is scored on."""
    table, config = workspace.table(group), workspace.config
    return table, *context_and_targets(table, split, config.context_questions, config.seed)


def seen_answers(workspace: Workspace, *splits: QuestionSplit) -> FloatArray:
    """Lay out the shares answered, shape (seen groups, rows), NaN where there is no answer.

    Rows are those of the embedding table.
    """
    answers = np.full((len(workspace.seen), len(workspace.vectors)), np.nan)
    for place, group in enumerate(workspace.seen):
        table = workspace.table(group)
        held = np.repeat(np.isin(table.split, splits), table.size)
        answers[place, option_rows(table.first_row, table.size)[held]] = table.distribution[held]
    return answers


def _with_other_lists(workspace: Workspace, answers: FloatArray) -> FloatArray:
    """Fill in what a group says of a candidate in other lists of the same prompt.

    A candidate's share times the length of its list is 1 for an average one, whatever the list.
    """
    questions = workspace.dataset.questions
    rows, length = option_rows(*(sizes := question_rows(workspace))), np.repeat(sizes[1], sizes[1])
    number: dict[tuple[str, str], int] = {}
    candidate = np.array(
        [number.setdefault((q.text, o), len(number)) for q in questions for o in q.options]
    )
    filled = answers.copy()
    for group in filled:
        worth = group[rows] * length
        known = ~np.isnan(worth)
        count = np.bincount(candidate[known], minlength=len(number))
        total = np.bincount(candidate[known], weights=worth[known], minlength=len(number))
        mean = np.divide(total, count, out=np.full(len(number), np.nan), where=count > 0)
        group[rows] = np.where(known, group[rows], mean[candidate] / length)
    return filled


def question_rows(workspace: Workspace) -> tuple[IntArray, IntArray]:
    """Return first row and number of options of the data set's questions, shape (Q,) each."""
    questions = workspace.dataset.questions
    first = [workspace.first_row[q.id] for q in questions]
    return np.array(first, dtype=np.int64), np.array([len(q.options) for q in questions])


def agreement(answers: FloatArray, table: GroupTable, context: IntArray) -> FloatArray:
    """Return each seen group's mean alignment with a context, shape (seen groups,).

    One that answered none of these questions gets the mean of the others; without others 0.

    Parameters
    ----------
    answers : ndarray, shape (seen groups, rows)
        As `seen_answers` lays them out.
    table : GroupTable
        Of the group whose context it is.
    context : ndarray of int, shape (questions,)
        Index into the table.
    """
    true = table.answers(context).astype(np.float64)
    question = owners(table.size[context])
    shown = answers[:, option_rows(table.first_row[context], table.size[context])]
    group, option = np.nonzero(~np.isnan(shown))
    cells, cell = np.unique(group * len(context) + question[option], return_inverse=True)
    scores = alignment(shown[group, option], true[option], cell)
    owner = cells // max(len(context), 1)
    count = np.bincount(owner, minlength=len(answers))
    total = np.bincount(owner, weights=scores, minlength=len(answers))
    mean = total / np.maximum(count, 1)
    shared = count > 0
    return np.where(shared, mean, mean[shared].mean() if shared.any() else 0.0)


def weighted_mean(answers: FloatArray, weights: FloatArray) -> FloatArray:
    """Average answers over the groups that gave one; NaN where none with a weight did.

    ``Σ w a / Σ w`` of answers (groups, rows) with weights (groups,): shape (rows,).
    """
    mass = weights @ ~np.isnan(answers)
    total = weights @ np.nan_to_num(answers)
    return np.divide(total, mass, out=np.full_like(mass, np.nan), where=mass > 0)


def _recalled(
    answers: FloatArray, weights: FloatArray, table: GroupTable, targets: IntArray
) -> FloatArray:
    rows = option_rows(table.first_row[targets], table.size[targets])
    mean = weighted_mean(answers[:, rows], weights)
    return np.where(np.isnan(mean), uniform(table, targets, targets), mean)


def _others(workspace: Workspace, group: str) -> FloatArray:
    """Return weight 1 for every seen group but the one asked."""
    return np.array([float(seen != group) for seen in workspace.seen])


def _directions(vectors: FloatArray, first_row: IntArray, size: IntArray) -> FloatArray:
    """Return the unit vectors of questions: the means over their options."""
    total = np.add.reduceat(vectors[option_rows(first_row, size)], starts(size))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(total / np.maximum(length, 1e-12))
