"""Use a trained predictor: condition it on a group's answers, predict, score other groups.

>>> from pluralllm_fl import Pluralist
>>> pluralist = Pluralist.load("runs/my-run")
>>> group = pluralist.condition({("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)})
>>> group.predict("Do you trust the courts?", ["Yes", "No"])
array([0.41, 0.59])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pluralllm_fl.arrays import BoolArray, FloatArray
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import ConfigError, nearest
from pluralllm_fl.evaluation.opening import (
    open_run,
    recorded,
    require_same_embedding,
    run_config,
)
from pluralllm_fl.evaluation.references import references_by_side
from pluralllm_fl.evaluation.scores import evaluate_group, split_blocks
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.preferences import Question

Answers = Mapping[tuple[str, tuple[str, ...]], Sequence[float]]
Offered = Mapping[tuple[str, tuple[str, ...]], Sequence[str]]


@dataclass(frozen=True)
class ConditionedGroup:
    """A predictor that has read one group's answers."""

    pluralist: "Pluralist"
    context: tuple[Tensor, ...]

    def predict(
        self, question: str, options: Sequence[str], offered: Sequence[str] | None = None
    ) -> FloatArray:
        """Return the predicted distribution over the options.

        Parameters
        ----------
        offered : sequence of str, optional
            The options that the group can choose from, where it lacks some that others have: the
            rest get exactly 0. The predictor reads all `options`, as it did in training.

        Raises
        ------
        ConfigError
            For fewer than two options, empty or repeated ones, or an empty question.
        """
        asked = checked_question(question, options)
        batch = self.pluralist.batch([asked])
        if offered is not None:
            batch = replace(batch, offered=torch.from_numpy(offered_mask(asked, offered)))
        with torch.no_grad():
            score = self.pluralist.predictor.score(self.context, batch)
        return score.log_probability.exp().double().numpy()


@dataclass(frozen=True)
class Pluralist:
    """A trained predictor together with the language model that reads its questions."""

    predictor: PreferencePredictor
    embedder: TextEmbedder

    @classmethod
    def load(cls, run: Path | str, embedding_cache: Path | None = None) -> Self:
        """Load from a run directory (or its ``model`` folder).

        `embedding_cache` is the folder of cached embeddings; None: the default one.

        Raises
        ------
        ArtefactError, EmbeddingError
            When the model is missing or damaged, or its language model is not to be had here.
        """
        folder = Path(run)
        folder = folder / "model" if (folder / "model").is_dir() else folder
        predictor = PreferencePredictor.from_pretrained(folder)
        config = predictor.config
        embedder = TextEmbedder(
            model=config.embedding_model,
            pooling=config.embedding_pooling,
            template=config.embedding_template,
            cache_dir=embedding_cache,
            standardise=config.embedding_standardise,
        )
        require_same_embedding(predictor, embedder.fingerprint)
        embedder.load()
        return cls(predictor, embedder)

    def condition(self, answers: Answers, offered: Offered | None = None) -> ConditionedGroup:
        """Read a group's answers, {(question, options): distribution}; may be empty.

        `offered`, {(question, options): options offered}, names those that the group could choose
        from, of the questions where it lacked some: the zeros of the rest say nothing of it.

        Raises
        ------
        ConfigError
            For answers that are none, or to options that were not offered.
        """
        questions = [checked_question(text, options) for text, options in answers]
        distributions = [np.asarray(p, dtype=np.float64) for p in answers.values()]
        for question, p in zip(questions, distributions, strict=True):
            fits = p.shape == (len(question.options),) and bool((p >= 0).all())
            if not fits or not np.isclose(p.sum(), 1, atol=0.01):
                raise ConfigError(
                    f"The answer to '{question.text}' must be {len(question.options)} "
                    f"probabilities that sum to 1, not {p.tolist()}."
                )
        shares = [(p / p.sum()).astype(np.float32) for p in distributions]
        batch = self.batch(questions, shares) if questions else None
        if batch is not None and offered:
            held = [
                offered_mask(question, offered.get(key, question.options), p)
                for key, question, p in zip(answers, questions, distributions, strict=True)
            ]
            batch = replace(batch, offered=torch.from_numpy(np.concatenate(held)))
        with torch.no_grad():
            return ConditionedGroup(self, self.predictor.encode_context(batch))

    def batch(
        self, questions: Sequence[Question], distributions: Sequence[Any] | None = None
    ) -> QuestionBatch:
        """Embed questions into a batch."""
        table = self.embedder.embed(questions)
        answers = None if distributions is None else torch.from_numpy(np.concatenate(distributions))
        return QuestionBatch.build(
            torch.from_numpy(table.vectors),
            np.array([table.first_row[q.id] for q in questions], dtype=np.int64),
            np.array([len(q.options) for q in questions], dtype=np.int64),
            answers,
        )


def checked_question(text: str, options: Sequence[str]) -> Question:
    """Return the question, or raise `ConfigError` if it cannot be asked."""
    if not text.strip():
        raise ConfigError("The question is empty.")
    if len(options) < 2:
        raise ConfigError(f"A question needs at least two options, not {len(options)}.")
    bare = {option.strip() for option in options}
    if "" in bare or len(bare) < len(options):
        raise ConfigError(f"Options must be distinct and not empty: {list(options)}.")
    return Question(text, tuple(options))


def offered_mask(
    question: Question, offered: Sequence[str], shares: FloatArray | None = None
) -> BoolArray:
    """Mark the options offered, shape (options,).

    Raises
    ------
    ConfigError
        If they are fewer than two, none of the options, or lack one that has a share.
    """
    if unknown := [text for text in offered if text not in question.options]:
        raise ConfigError(
            f"'{unknown[0]}' is offered, but is none of the options of '{question.text}': "
            f"{list(question.options)}.{nearest(unknown[0], question.options)}"
        )
    mask = np.array([option in offered for option in question.options])
    if mask.sum() < 2:
        raise ConfigError(f"At least two options of '{question.text}' must be offered.")
    if shares is not None and (shares[~mask] > 0).any():
        raise ConfigError(
            f"The answer to '{question.text}' has a share on an option that was not offered."
        )
    return mask


def predict_distribution(
    run: Path,
    context: Path | None,
    question: str,
    options: Sequence[str],
    group: str | None = None,
    offered: Sequence[str] | None = None,
) -> FloatArray:
    """Predict one question, with the answers in a data file as context.

    Raises
    ------
    ConfigError
        When the file holds several groups and `group` names none of them.
    """
    config = run_config(run)
    cache = config.embedding_cache
    pluralist = Pluralist.load(run, Path(cache) if cache else None)
    answers: Answers = {}
    offers: Offered = {}
    if context is not None:
        held = load_dataset(str(context), zeros=config.zeros).groups
        name = group or (next(iter(held)) if len(held) == 1 else "")
        if name not in held:
            wanted = f"no group '{name}'.{nearest(name, held)}" if name else "several groups."
            raise ConfigError(f"{context} holds {wanted} Name one with --group: {'; '.join(held)}")
        known = held[name]
        answers = {(q.text, q.options): p.tolist() for q, p in known.answers.items()}
        offers = {
            (q.text, q.options): list(compress(q.options, mask))
            for q, mask in known.offered.items()
        }
    elif group:
        raise ConfigError(f"--group '{group}' needs --context, a file with the group's answers.")
    return pluralist.condition(answers, offers).predict(question, options, offered)


def evaluate_run(
    run: Path,
    dataset: str,
    groups: tuple[str, ...] = (),
    context_questions: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Score a trained predictor on groups that it did not train on, without training.

    Parameters
    ----------
    groups : tuple of str
        Empty: every group, but for those that trained if `dataset` is the run's own.
    context_questions : int or None
        Answers shown of each group; None: as in the run.
    seed : int or None
        Draw of the shown answers; None: the run's. The split of questions stays the run's, so
        that no question it trained on counts as a test question.

    Returns
    -------
    dict
        ``{"unseen": block, "references": …}`` as in summary.json and diagnostics.json; groups named
        like one that trained are in a block of their own under ``seen``. Of a data set other than
        the run's, no question counts as trained, and the marginal is not known.

    Raises
    ------
    ConfigError
        For unknown groups, or if every group took part in training.
    """
    trained = run_config(run)
    shown = trained.context_questions if context_questions is None else context_questions
    workspace, predictor = open_run(
        run, dataset=dataset, seen_groups=";".join(groups), unseen_groups="",
        context_questions=shown,
    )  # fmt: skip
    participants = set(recorded(run, "seen", list))
    own = dataset == trained.dataset
    left_out = participants if own else set()
    chosen = groups or tuple(g for g in workspace.groups if g not in left_out)
    if not chosen:
        raise ConfigError(f"Every group of {dataset} took part in training; name some with groups.")
    draw = trained.seed if seed is None else seed
    scores = {
        group: evaluate_group(
            predictor,
            workspace.table(group),
            context_questions=shown,
            seed=draw,
        )
        for group in chosen
    }
    sides = {
        "seen": {g: score for g, score in scores.items() if g in participants},
        "unseen": {g: score for g, score in scores.items() if g not in participants},
    }
    found: dict[str, Any] = {side: split_blocks(s) for side, s in sides.items() if s}
    if not own:
        for block in filter(None, found.values()):
            block["trained_questions"] = None
    # The marginal is of the groups that trained, whichever are asked; the targets are those of the
    # draw. The tables, which the workspaces share, keep the run's split of questions.
    answered = tuple(sorted(participants & set(workspace.dataset.groups)))
    of_run = replace(workspace, seen=answered, config=replace(workspace.config, seed=draw))
    found["references"] = references_by_side(of_run, {s: sides[s] for s in found}, marginal=own)
    return found
