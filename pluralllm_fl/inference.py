"""Use a trained predictor: condition it on a group's answers, predict, score other groups.

>>> from pluralllm_fl.inference import Pluralist
>>> pluralist = Pluralist.load("runs/my-run")
>>> group = pluralist.condition({("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)})
>>> group.predict("Do you trust the courts?", ["Yes", "No"])
array([0.41, 0.59])
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pluralllm_fl.config import RunConfig
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.episodes import QuestionBatch
from pluralllm_fl.errors import ArtefactError, ConfigError, nearest
from pluralllm_fl.evaluation import EvaluationSplit, SplitScore, evaluate_group
from pluralllm_fl.metrics import FloatArray, group_block
from pluralllm_fl.predictor import PreferencePredictor
from pluralllm_fl.preferences import Question
from pluralllm_fl.workspace import open_workspace

Answers = Mapping[tuple[str, tuple[str, ...]], Sequence[float]]


@dataclass(frozen=True)
class ConditionedGroup:
    """A predictor that has read one group's answers."""

    pluralist: "Pluralist"
    context: tuple[Tensor, ...]

    def predict(self, question: str, options: Sequence[str]) -> FloatArray:
        """Return the predicted distribution over the options.

        Raises
        ------
        ConfigError
            For fewer than two options, empty or repeated ones, or an empty question.
        """
        asked = checked_question(question, options)
        predictor = self.pluralist.predictor
        with torch.no_grad():
            score = predictor.score(self.context, self.pluralist.batch([asked]))
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
        )
        require_same_embedding(predictor, embedder.fingerprint)
        return cls(predictor, embedder)

    def condition(self, answers: Answers) -> ConditionedGroup:
        """Read a group's answers, {(question, options): distribution}; may be empty."""
        questions = [checked_question(text, options) for text, options in answers]
        distributions = [np.asarray(p, dtype=np.float32) for p in answers.values()]
        for question, p in zip(questions, distributions, strict=True):
            if p.shape != (len(question.options),) or not np.isclose(p.sum(), 1, atol=0.01):
                raise ConfigError(
                    f"The answer to '{question.text}' must be {len(question.options)} "
                    f"probabilities that sum to 1, not {p.tolist()}."
                )
        batch = self.batch(questions, distributions) if questions else None
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
    if not all(option.strip() for option in options) or len(set(options)) < len(options):
        raise ConfigError(f"Options must be distinct and not empty: {list(options)}.")
    return Question(text, tuple(options))


def require_same_embedding(predictor: PreferencePredictor, fingerprint: str) -> None:
    """Refuse a language model other than the one that the predictor was trained with."""
    trained = predictor.config.embedding_fingerprint
    if trained and trained != fingerprint:
        raise ArtefactError(
            f"The predictor was trained on embeddings of '{predictor.config.embedding_model}' "
            f"({trained[:12]}), but the model found here is another ({fingerprint[:12]}). "
            "Install the same model or retrain."
        )


def run_config(run: Path) -> RunConfig:
    """Read the run config that a run directory holds.

    Raises
    ------
    ArtefactError
        When run.json is missing or damaged.
    """
    try:
        values = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
        return RunConfig.from_run_config(values)
    except FileNotFoundError:
        raise ArtefactError(f"{run} is not a run directory: run.json is missing.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{run / 'run.json'} is damaged: {error}.") from None


def predict_distribution(
    run: Path,
    context: Path | None,
    question: str,
    options: Sequence[str],
    group: str | None = None,
) -> FloatArray:
    """Predict one question, with the answers in a data file as context.

    Raises
    ------
    ConfigError
        When the file holds several groups and `group` names none of them.
    """
    cache = run_config(run).embedding_cache
    pluralist = Pluralist.load(run, Path(cache) if cache else None)
    answers: Answers = {}
    if context is not None:
        held = load_dataset(str(context)).groups
        name = group or (next(iter(held)) if len(held) == 1 else "")
        if name not in held:
            wanted = f"no group '{name}'.{nearest(name, held)}" if name else "several groups."
            raise ConfigError(f"{context} holds {wanted} Name one with --group: {'; '.join(held)}")
        preferences = held[name].answers
        answers = {(q.text, q.options): p.tolist() for q, p in preferences.items()}
    elif group:
        raise ConfigError(f"--group '{group}' needs --context, a file with the group's answers.")
    return pluralist.condition(answers).predict(question, options)


def evaluate_run(
    run: Path,
    dataset: str,
    groups: tuple[str, ...] = (),
    context_questions: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Score a trained predictor on other groups or files, none of which it trains on.

    Returns
    -------
    dict
        ``{"unseen": block}`` as in summary.json.
    """
    trained = run_config(run)
    chosen = ";".join(groups)
    config = dataclasses.replace(
        trained,
        dataset=dataset,
        seen_groups=chosen,
        unseen_groups="",
        context_questions=trained.context_questions
        if context_questions is None
        else context_questions,
        seed=trained.seed if seed is None else seed,
    )
    workspace = open_workspace(config)
    torch.set_num_threads(config.threads)  # the predictor is small: threads would only wait
    predictor = PreferencePredictor.from_pretrained(run / "model")
    require_same_embedding(predictor, workspace.embedding_fingerprint)
    predictor.to(workspace.vectors.device)
    scores = {
        group: evaluate_group(
            predictor,
            workspace.table(group),
            context_questions=config.context_questions,
            seed=config.seed,
        )
        for group in (groups or workspace.groups)
    }
    return {"unseen": split_blocks(scores)}


def split_blocks(
    scores: Mapping[str, Mapping[EvaluationSplit, SplitScore]],
) -> dict[str, Any]:
    """Turn per-group scores into a block over all questions with ``test_questions`` inside."""
    block = _block({group: score["all"] for group, score in scores.items()})
    assert block is not None, "every group has questions"
    block["test_questions"] = _block({group: score["test"] for group, score in scores.items()})
    return block


def _block(scores: Mapping[str, SplitScore]) -> dict[str, Any] | None:
    held = {group: score for group, score in scores.items() if score.questions}
    if not held:
        return None
    return group_block(
        {g: s.alignment for g, s in held.items()},
        {g: s.questions for g, s in held.items()},
        {g: s.uniform for g, s in held.items()},
        {g: (s.low, s.high) for g, s in held.items()},
    )
