"""How a policy answers survey questions: by the letters' probabilities, or by what it writes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax, softmax

from pluralllm_fl.alignment.policy import Policy, left_padded
from pluralllm_fl.alignment.prompts import Prompts
from pluralllm_fl.arrays import FloatArray, IntArray
from pluralllm_fl.datasets.completions import stated_option
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import Question

Asked = tuple[Question, str | None]  # a question, and the group that the prompt names
BATCH_TOKENS = 2048
ANSWER_TOKENS = 24  # a letter, or a letter and an option's text


@dataclass(frozen=True)
class LetterAnswer:
    """What a policy says to one question, in several orders of the options.

    Parameters
    ----------
    orders : ndarray of int, shape (orders, options)
        In order r letter j stands for option ``orders[r, j]``.
    log_probability : ndarray, shape (orders, options)
        Of the letters' tokens, among all tokens that could come first; natural log.
    """

    orders: IntArray
    log_probability: FloatArray

    @property
    def distribution(self) -> FloatArray:
        """Shares of the options, (options,): mean over the orders, given that a letter comes."""
        return self._by_option(softmax(self.log_probability, axis=1))

    @property
    def mass(self) -> float:
        """Probability that a letter comes at all, mean over the orders."""
        return float(np.exp(self.log_probability).sum(axis=1).mean())

    def first_order(self) -> "LetterAnswer":
        """Return the answer in the question's own order alone."""
        return replace(self, orders=self.orders[:1], log_probability=self.log_probability[:1])

    def less(self, prior: FloatArray) -> FloatArray:
        """Return the options' shares with `prior` off the letters' logits, (options,) each."""
        return self._by_option(softmax(self.log_probability - prior, axis=1))

    def divergence(self, base: "LetterAnswer") -> float:
        """Return KL(this ‖ base) of the letters in nats, mean over the orders, which both share."""
        own, other = (log_softmax(x.log_probability, axis=1) for x in (self, base))
        return float((np.exp(own) * (own - other)).sum(axis=1).mean())

    def _by_option(self, letters: FloatArray) -> FloatArray:
        found = np.empty_like(letters)
        np.put_along_axis(found, self.orders, letters, axis=1)
        return np.asarray(found.mean(axis=0), dtype=np.float64)


def rotations(options: int, count: int) -> IntArray:
    """Return up to `count` orders of the options, (orders, options): the first is their own.

    Each is a rotation. With all of them every option has every letter once, so that a policy that
    looks at the letter alone comes out uniform.

    >>> rotations(4, 2).tolist()
    [[0, 1, 2, 3], [2, 3, 0, 1]]
    """
    if count < 1:
        raise ConfigError(f"orders = {count}: must be at least 1.")
    count = min(count, options)
    shifts = np.arange(count) * options // count
    return np.asarray((np.arange(options) + shifts[:, None]) % options, dtype=np.int64)


def letter_answers(
    policy: Policy,
    asked: Sequence[Asked],
    orders: int = 4,
    *,
    chat: bool | None = None,
    on_batch: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[LetterAnswer]:
    """Ask a policy and read the probabilities of the letters that could come next.

    Parameters
    ----------
    asked : sequence of (Question, str or None)
        Each with the group that the prompt names.
    orders : int
        In how many orders of the options each is asked, at most as many as it has options.
    chat : bool, optional
        How the policy is asked (`Prompts.of`).
    on_batch : callable
        Told how many prompts of all are done.

    Raises
    ------
    ConfigError
        For more options than letters, or a policy that cannot say them in one token.
    """
    prompts = Prompts.of(policy, chat)
    turned = [rotations(len(question.options), orders) for question, _ in asked]
    ids = [
        prompts.encode(prompts.ask(question, group, order.tolist()))
        for (question, group), rows in zip(asked, turned, strict=True)
        for order in rows
    ]
    most = max((rows.shape[1] for rows in turned), default=0)
    log_p, done = np.empty((len(ids), most)), 0
    for batch in _batches([len(row) for row in ids]):
        log_p[batch] = _next_token(policy, [ids[i] for i in batch], prompts.letter_ids(most))
        done += len(batch)
        on_batch(done, len(ids))
    ends = np.cumsum([len(rows) for rows in turned])
    return [
        LetterAnswer(rows, log_p[end - len(rows) : end, : rows.shape[1]])
        for rows, end in zip(turned, ends, strict=True)
    ]


def letter_prior(answers: Sequence[LetterAnswer]) -> dict[int, FloatArray]:
    """Return the mean natural log-probability of each letter, (options,), by number of options.

    It is what a policy says before it reads a question: with it off (`LetterAnswer.less`) the
    policy is debiased. No answer of a group is read.
    """
    rows: defaultdict[int, list[FloatArray]] = defaultdict(list)
    for answer in answers:
        rows[answer.orders.shape[1]].append(log_softmax(answer.log_probability, axis=1))
    return {size: np.concatenate(found).mean(axis=0) for size, found in rows.items()}


def debiased(answers: Sequence[LetterAnswer]) -> list[FloatArray]:
    """Return the options' shares, (options,) an answer, with the letters' own prior removed."""
    prior = letter_prior(answers)
    return [answer.less(prior[answer.orders.shape[1]]) for answer in answers]


def written_answers(
    policy: Policy,
    asked: Sequence[Asked],
    samples: int = 8,
    orders: int = 4,
    *,
    seed: int = 0,
    chat: bool | None = None,
) -> list[IntArray]:
    """Let a policy write and count which options its texts state (`completions.stated_option`).

    Parameters
    ----------
    samples : int
        Texts in each order of the options, at temperature 1; the first line of each counts.

    Returns
    -------
    list of ndarray of int, shape (options + 1,)
        How often each option was stated; the last, how many texts state none.
    """
    if samples < 1:
        raise ConfigError(f"samples = {samples}: must be at least 1.")
    prompts = Prompts.of(policy, chat)
    torch.manual_seed(seed)
    found = []
    for question, group in asked:
        counts = np.zeros(len(question.options) + 1, dtype=np.int64)
        for order in rotations(len(question.options), orders).tolist():
            ids = prompts.encode(prompts.ask(question, group, order))
            shown = [question.options[i] for i in order]
            for text in write(policy, ids, samples):
                stated = stated_option(first_line(text), shown)
                counts[-1 if stated is None else order[stated]] += 1
        found.append(counts)
    return found


@torch.inference_mode()
def write(
    policy: Policy, ids: list[int], samples: int, new_tokens: int = ANSWER_TOKENS
) -> list[str]:
    """Sample texts that follow a prompt, at temperature 1."""
    given = torch.tensor([ids], device=policy.model.device)
    out = policy.model.generate(
        input_ids=given, attention_mask=torch.ones_like(given), do_sample=True, temperature=1.0,
        top_k=0, top_p=1.0, num_return_sequences=samples, max_new_tokens=new_tokens,
        pad_token_id=policy.tokenizer.pad_token_id,
    )  # fmt: skip
    texts: list[str] = policy.tokenizer.batch_decode(out[:, len(ids) :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def first_line(text: str) -> str:
    """Return what a written text says before it goes on."""
    return (text.splitlines() or [""])[0].strip()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Put rows of like length together, up to `BATCH_TOKENS` with their padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _next_token(policy: Policy, rows: Sequence[list[int]], tokens: list[int]) -> FloatArray:
    """Return the log-probability of each of `tokens` after each prompt, (rows, tokens)."""
    batch = left_padded(rows, policy.tokenizer.pad_token_id)
    given = {name: values.to(policy.model.device) for name, values in batch.items()}
    out = policy.model(**given, logits_to_keep=1, use_cache=False)
    log_p = out.logits[:, -1].double().log_softmax(dim=-1)
    found: FloatArray = log_p[:, tokens].cpu().numpy()
    return found
