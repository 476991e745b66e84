"""Use a trained predictor: fit it to a group's answers, predict, score.

>>> from pluralllm_fl import Pluralist
>>> pluralist = Pluralist.from_pretrained("runs/my-run")  # or the id of a model on the hub
>>> group = pluralist.fit({("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)})
>>> group
ConditionedGroup(1 answer)
>>> group.predict("Do you trust the courts?", ["Yes", "No"]).shape
(2,)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pluralllm_fl.arrays import BoolArray, FloatArray, owners
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.datasets.answers import (
    NAMELESS,
    Answers,
    Asked,
    Offered,
    asked,
    offered_mask,
    one_group,
    read_answers,
)
from pluralllm_fl.devices import torch_threads
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
from pluralllm_fl.reward import PluralisticReward
from pluralllm_fl.runs.hub import model_folder, push

QUESTIONS_AT_ONCE = 128  # scored together: more would leave the processor's caches
_FEW_OPTIONS = 1000  # of a context: fewer are too little work to share among threads


@dataclass(frozen=True, repr=False)
class ConditionedGroup:
    """A predictor that has read one group's answers.

    Parameters
    ----------
    pluralist : Pluralist
    context : tuple of Tensor, any shape
        What the predictor keeps of the answers (`encode_context` of its network).
    answers : int
        How many questions the group answered.
    name : str
        Of the group, where its answers tell it.
    """

    pluralist: "Pluralist"
    context: tuple[Tensor, ...]
    answers: int
    name: str = NAMELESS

    def __repr__(self) -> str:
        return f"ConditionedGroup({self.answers} answer{'s' * (self.answers != 1)})"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code> of {self.pluralist._repr_html_()}"

    @property
    def reward(self) -> PluralisticReward:
        """A reward function for TRL in which every row gets this group's (mode ``likelihood``).

        For several groups, other modes and free texts see `PluralisticReward`.
        """
        return PluralisticReward({self.name: self})

    def predict(
        self, question: str, options: Sequence[str], offered: Sequence[str] | None = None
    ) -> FloatArray:
        """Return the predicted distribution over one question's options: shares, shape (options,).

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
            Shares of each question's options.
        """
        return [np.exp(p) for p in self.predict_log_proba(questions)]

    def predict_log_proba(self, questions: Sequence[Asked]) -> list[FloatArray]:
        """Return natural logs of `predict_proba`, (options,) each; exact where that rounds to 0."""
        read = [asked(question) for question in questions]
        if not read:
            return []
        # Questions with as many options side by side: the others would be padded to the longest.
        order = sorted(range(len(read)), key=lambda i: len(read[i].options))
        ends = np.cumsum([len(read[i].options) for i in order])
        scores = np.split(self._log_probability([read[i] for i in order]), ends[:-1])
        found = dict(zip(order, scores, strict=True))
        return [found[i] for i in range(len(read))]

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
        number = owners([len(p) for p in true.values()])
        return float(alignment(predicted, np.concatenate(list(true.values())), number).mean())

    @torch.no_grad()
    def _log_probability(
        self, questions: Sequence[Question], offered: BoolArray | None = None
    ) -> FloatArray:
        score = self.pluralist.predictor.score
        with torch_threads(1):  # small matrices: several threads would mostly wait
            scores = [
                score(self.context, batch).log_probability
                for batch in self.pluralist.batches(questions, offered=offered)
            ]
        found: FloatArray = torch.cat(scores).double().numpy()
        return found


@dataclass(frozen=True, repr=False)
class Pluralist:
    """A trained predictor together with the language model that reads its questions.

    Parameters
    ----------
    predictor : PreferencePredictor
    embedder : TextEmbedder
    folder : Path or None
        Where the predictor lies on this disk, if it does.

    Notes
    -----
    torch computes the small matrices in here on one thread and has the caller's number again
    afterwards: threads that share milliseconds of work wait for each other, for seconds where
    other programs are busy. Nothing else of the process or its environment is set.
    """

    predictor: PreferencePredictor
    embedder: TextEmbedder
    folder: Path | None = None

    def __repr__(self) -> str:
        network, config = type(self.predictor.network).__name__, self.predictor.config
        return f"Pluralist({network}, embedding_model='{config.embedding_model}')"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    @classmethod
    def from_pretrained(
        cls,
        run: Path | str,
        embedding_cache: Path | str | None = None,
        *,
        revision: str | None = None,
    ) -> Self:
        """Load a run's model.

        Parameters
        ----------
        run : Path or str
            A run directory, its ``model`` folder, or the id of a model on the Hugging Face hub, of
            which ``config.json`` and ``model.safetensors`` are fetched and nothing is executed.
        embedding_cache : Path or str, optional
            Folder of cached embeddings; None: the default one.
        revision : str, optional
            Branch, tag or commit on the hub.

        Raises
        ------
        ArtefactError, EmbeddingError
            When the model is missing or damaged, or its language model is not to be had here.
        """
        folder = model_folder(run, revision)
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
        return cls(predictor, embedder, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Send the model and its card to the Hugging Face hub.

        Only ``config.json``, ``model.safetensors`` and ``README.md`` go there; write the licence
        into the card first. Weights hold a part of every training group's answers
        (docs/privacy.md), so a new repository is private unless you say otherwise.

        Returns
        -------
        str
            The repository's address.

        Raises
        ------
        ConfigError
            For a predictor that was not loaded from a folder.
        ArtefactError
            If the hub cannot be reached or refuses it.
        """
        if self.folder is None:
            raise ConfigError("Only a model that lies in a folder can be sent: load it from there.")
        return push(self.folder, repo_id, private=private, token=token)

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
        answers : mapping, sequence of rows, table, path or GroupPreferences
            ``{(question, options): distribution or counts}``, counts as whole numbers; or rows
            (docs/data.md) as dicts or as a table of pandas, polars, pyarrow or whatever hands out
            Arrow data, in which the column `group` may be left out; or the path of a data file.
            May be empty.
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
        few = batch is None or len(batch.question) < _FEW_OPTIONS
        threads: AbstractContextManager[None] = torch_threads(1) if few else nullcontext()
        with torch.no_grad(), threads:
            context = self.predictor.encode_context(batch)
        return ConditionedGroup(self, context, len(known), known.group)

    def batch(
        self, questions: Sequence[Question], known: GroupPreferences | None = None
    ) -> QuestionBatch:
        """Embed questions into one batch, with a group's answers to them where `known`."""
        offered = None if known is None else known.offers(questions)
        (batch,) = self.batches(questions, known, offered, at_once=max(len(questions), 1))
        return batch

    def batches(
        self,
        questions: Sequence[Question],
        known: GroupPreferences | None = None,
        offered: BoolArray | None = None,
        at_once: int = QUESTIONS_AT_ONCE,
    ) -> Iterator[QuestionBatch]:
        """Embed questions, and yield them in batches.

        Parameters
        ----------
        known : GroupPreferences, optional
            The group's answers to them.
        offered : ndarray of bool, shape (N,), or None
            What can be chosen; None: all.
        at_once : int
            Questions of a batch.
        """
        table = self.embedder.embed(questions)
        vectors = torch.from_numpy(table.vectors)
        sizes = np.array([len(q.options) for q in questions], dtype=np.int64)
        ends = np.concatenate([[0], sizes.cumsum()])
        for start in range(0, len(questions), at_once):
            part, size = questions[start : start + at_once], sizes[start : start + at_once]
            options = slice(ends[start], ends[start + len(part)])
            shares = None
            if known is not None:
                shares = np.concatenate([known.answers[q] for q in part]).astype(np.float32)
            yield QuestionBatch.build(
                vectors,
                np.array([table.first_row[q.id] for q in part], dtype=np.int64),
                size,
                None if shares is None else torch.from_numpy(shares),
                None if offered is None else torch.from_numpy(offered[options]),
            )


def predict_distribution(
    run: Path,
    context: Path | None,
    question: str,
    options: Sequence[str],
    group: str | None = None,
    offered: Sequence[str] | None = None,
) -> FloatArray:
    """Predict one question, shares (options,), with the answers in a data file as context.

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
