"""Use a trained predictor: fit it to a group's answers, predict, score.

>>> from pluralllm_fl import Pluralist
>>> pluralist = Pluralist.from_pretrained("runs/my-run")
>>> group = pluralist.fit({("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)})
>>> group.predict("Do you trust the courts?", ["Yes", "No"])
array([0.41, 0.59])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pluralllm_fl.arrays import BoolArray, FloatArray
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.answers import (
    Answers,
    Asked,
    Offered,
    asked,
    offered_mask,
    one_group,
    read_answers,
)
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.opening import (
    require_same_embedding,
    run_config,
)
from pluralllm_fl.metrics import alignment
from pluralllm_fl.predictor.episodes import QuestionBatch
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.preferences import GroupPreferences, Question


@dataclass(frozen=True, repr=False)
class ConditionedGroup:
    """A predictor that has read one group's answers.

    Parameters
    ----------
    pluralist : Pluralist
    context : tuple of Tensor
        What the predictor keeps of the answers.
    answers : int
        How many questions the group answered.
    """

    pluralist: "Pluralist"
    context: tuple[Tensor, ...]
    answers: int

    def __repr__(self) -> str:
        return f"ConditionedGroup({self.answers} answers)"

    def predict(
        self, question: str, options: Sequence[str], offered: Sequence[str] | None = None
    ) -> FloatArray:
        """Return the predicted distribution over the options of one question.

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
        one = asked((question, options))
        mask = None if offered is None else offered_mask(one, offered)
        return np.exp(self._log_probability([one], mask))

    def predict_proba(self, questions: Sequence[Asked]) -> list[FloatArray]:
        """Predict the distributions over the options of many questions in one pass.

        Parameters
        ----------
        questions : sequence of (str, sequence of str)
            Text and options of each.

        Returns
        -------
        list of ndarray, shape (options,)
        """
        return [np.exp(p) for p in self.predict_log_proba(questions)]

    def predict_log_proba(self, questions: Sequence[Asked]) -> list[FloatArray]:
        """Return the logarithms of `predict_proba`; exact where that rounds to 0."""
        read = [asked(question) for question in questions]
        if not read:
            return []
        ends = np.cumsum([len(question.options) for question in read])
        return np.split(self._log_probability(read), ends[:-1])

    def score(self, held_out: Answers | GroupPreferences, *, group: str | None = None) -> float:
        """Return the mean alignment with answers that the predictor has not read.

        Parameters
        ----------
        held_out, group
            As in `Pluralist.fit`.

        Returns
        -------
        float
            Mean over questions of 1 - Jensen-Shannon distance; 1 is perfect. A uniform guess is
            far above 0: compare with its score.
        """
        true = read_answers(held_out, group=group).answers
        if not true:
            raise ConfigError("There are no answers to score the prediction on.")
        predicted = np.concatenate(self.predict_proba(list(true)))
        number = np.repeat(np.arange(len(true)), [len(p) for p in true.values()])
        return float(alignment(predicted, np.concatenate(list(true.values())), number).mean())

    @torch.no_grad()
    def _log_probability(
        self, questions: Sequence[Question], offered: BoolArray | None = None
    ) -> FloatArray:
        batch = self.pluralist.batch(questions, offered=offered)
        score = self.pluralist.predictor.score(self.context, batch)
        found: FloatArray = score.log_probability.double().numpy()
        return found


@dataclass(frozen=True, repr=False)
class Pluralist:
    """A trained predictor together with the language model that reads its questions."""

    predictor: PreferencePredictor
    embedder: TextEmbedder

    def __repr__(self) -> str:
        config = self.predictor.config
        return f"Pluralist(embedding_model='{config.embedding_model}')"

    @classmethod
    def from_pretrained(cls, run: Path | str, embedding_cache: Path | str | None = None) -> Self:
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

    def fit(
        self,
        answers: Answers | GroupPreferences,
        offered: Offered | None = None,
        *,
        group: str | None = None,
    ) -> ConditionedGroup:
        """Read a group's answers; nothing is trained, and this object stays as it is.

        Parameters
        ----------
        answers : mapping, sequence of rows, path or GroupPreferences
            ``{(question, options): distribution}``; or rows (docs/data.md) as dicts, in which the
            column `group` may be left out; or the path of a data file. May be empty.
        offered : mapping, optional
            ``{(question, options): options offered}`` of those answers in a mapping where the group
            lacked some options: the zeros of the rest say nothing of it. Rows have a column for it.
        group : str, optional
            Which group of rows or a file that hold several.

        Raises
        ------
        ConfigError, DatasetError
            For answers that are none, to options that were not offered, or of several groups of
            which none is named.
        """
        known = read_answers(answers, offered, group)
        batch = self.batch(list(known.answers), known) if known.answers else None
        with torch.no_grad():
            context = self.predictor.encode_context(batch)
        return ConditionedGroup(self, context, len(known))

    def batch(
        self,
        questions: Sequence[Question],
        known: GroupPreferences | None = None,
        offered: BoolArray | None = None,
    ) -> QuestionBatch:
        """Embed questions into a batch, with a group's answers to them where `known`.

        Parameters
        ----------
        offered : ndarray of bool, shape (options of all questions,), or None
            What can be chosen; None: what `known` says, else all.
        """
        table = self.embedder.embed(questions)
        shares = None
        if known is not None:
            shares = np.concatenate([known.answers[q] for q in questions]).astype(np.float32)
            offered = known.offers(questions)
        return QuestionBatch.build(
            torch.from_numpy(table.vectors),
            np.array([table.first_row[q.id] for q in questions], dtype=np.int64),
            np.array([len(q.options) for q in questions], dtype=np.int64),
            None if shares is None else torch.from_numpy(shares),
            None if offered is None else torch.from_numpy(offered),
        )


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
    if group and context is None:
        raise ConfigError(f"--group '{group}' needs --context, a file with the group's answers.")
    config = run_config(run)
    pluralist = Pluralist.from_pretrained(run, config.embedding_cache or None)
    known = read_answers({})
    if context is not None:
        known = one_group(load_dataset(str(context), zeros=config.zeros), group)
    return pluralist.fit(known).predict(question, options, offered)
