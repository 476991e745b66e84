"""A survey question as a prompt: the question first, lettered options, the group last.

>>> print(survey_text(Question("Tea?", ("Yes", "No")), "Spain", order=(1, 0)))
Tea?
A. No
B. Yes
Answer with the letter that this group would choose: Spain
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, repeat
from string import ascii_uppercase
from typing import Any

import numpy as np

from pluralllm_fl.alignment.policy import Policy
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.preferences import Question

Prompt = str | list[dict[str, str]]  # plain, or a conversation
_EXAMPLE = Question("Tea?", ("Yes", "No"))


def nameable(question: Question) -> bool:
    """Whether there is a letter for each of its options."""
    return len(question.options) <= len(ascii_uppercase)


def survey_text(
    question: Question, group: str | None = None, order: Sequence[int] | None = None
) -> str:
    """Return the question with lettered options.

    Parameters
    ----------
    group : str, optional
        Whose answer is asked for; it comes last, so that all groups share one prefix. None: a
        policy for everyone is asked.
    order : sequence of int, optional
        Letter j stands for option ``order[j]``; None: the question's own order.

    Raises
    ------
    ConfigError
        For more options than there are letters.
    """
    if not nameable(question):
        raise ConfigError(
            f"'{question.text:.80}' has {len(question.options)} options; letters end at "
            f"{len(ascii_uppercase)}. Leave the question out."
        )
    listed = [question.options[i] for i in (order or range(len(question.options)))]
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, listed, strict=False)]
    ask = "Answer with one letter."
    if group is not None:
        ask = f"Answer with the letter that this group would choose: {group}"
    return "\n".join([question.text, *lines, ask])


@dataclass(frozen=True)
class Prompts:
    """How one policy is asked.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    chat : bool
        As a conversation by the tokenizer's chat template; else plain text that ends with
        ``Answer:``.
    """

    tokenizer: Any
    chat: bool

    @classmethod
    def of(cls, policy: Policy, chat: bool | None = None) -> "Prompts":
        """Ask a policy in the form that it was tuned for (None), or in a given one.

        Raises
        ------
        ConfigError
            For a conversation with a tokenizer that has no chat template.
        """
        has_template = bool(policy.tokenizer.chat_template)
        if chat and not has_template:
            raise ConfigError(
                f"The tokenizer of '{policy.source}' has no chat template: ask it in plain text."
            )
        return cls(policy.tokenizer, has_template if chat is None else chat)

    def ask(
        self,
        question: Question,
        group: str | None = None,
        order: Sequence[int] | None = None,
    ) -> Prompt:
        """Return the prompt in TRL's form: plain text or a list of turns (see `survey_text`)."""
        text = survey_text(question, group, order)
        return [{"role": "user", "content": text}] if self.chat else f"{text}\nAnswer:"

    def answer(self, letter: str) -> Prompt:
        """Return a letter as the completion of a prompt, in TRL's form."""
        if self.chat:
            return [{"role": "assistant", "content": letter}]
        return self._lead + letter

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids that the policy reads, up to where its answer begins."""
        return self._ids(self._text(prompt))

    def letter_ids(self, count: int) -> list[int]:
        """Return the tokens that say the first `count` letters right after a prompt.

        Raises
        ------
        ConfigError
            If the tokenizer has no such token for one of them.
        """
        return [self._letter_id(letter) for letter in ascii_uppercase[:count]]

    @cached_property
    def _lead(self) -> str:
        """What stands before a letter: a space, unless the prompt ends with white space."""
        return "" if self._example[-1:].isspace() else " "

    @cached_property
    def _example(self) -> str:
        return self._text(self.ask(_EXAMPLE))

    def _letter_id(self, letter: str) -> int:
        before, after = (self._ids(self._example + end) for end in ("", self._lead + letter))
        if after[:-1] != before or after[-1] == self.tokenizer.unk_token_id:
            raise ConfigError(
                f"The policy's tokenizer has no token of its own for the answer '{letter}'. Use "
                "another policy."
            )
        return after[-1]

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        text: str = self.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        return text

    def _ids(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"]
        return ids


def shuffled(sizes: Sequence[int], count: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (question, order of its options): in random order, pass after pass.

    A policy that sees every order cannot learn a letter instead of an answer.

    Parameters
    ----------
    sizes : sequence of int
        Number of options of each question.
    count : int
        How many to yield.
    """
    rng = np.random.default_rng(seed)
    places = chain.from_iterable(rng.permutation(len(sizes)).tolist() for _ in repeat(None))
    for place in islice(places, count):
        yield place, rng.permutation(sizes[place]).tolist()


def survey_rows(
    prompts: Prompts,
    questions: Sequence[Question],
    groups: Sequence[str | None],
    seed: int = 0,
    count: int | None = None,
) -> list[dict[str, Any]]:
    """Return rows for TRL: questions for groups, in the order of `shuffled`.

    Parameters
    ----------
    groups : sequence of str or None
        ``[None]`` for a policy that is asked without a group.
    count : int, optional
        Number of rows; None: every question once for every group.

    Returns
    -------
    list of dict
        ``prompt``; ``question``, its text; ``options`` in the order of the letters; ``group``.
    """
    asked = [(question, group) for question in questions for group in groups]
    sizes = [len(question.options) for question, _ in asked]
    rows = []
    for place, order in shuffled(sizes, len(asked) if count is None else count, seed):
        question, group = asked[place]
        rows.append(
            {
                "prompt": prompts.ask(question, group, order),
                "question": question.text,
                "options": [question.options[i] for i in order],
                "group": group,
            }
        )
    return rows
