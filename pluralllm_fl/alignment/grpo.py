"""Training on a reward, by TRL's GRPOTrainer."""

import math
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from pluralllm_fl.alignment.everyone import Reward
from pluralllm_fl.alignment.policy import Policy
from pluralllm_fl.alignment.training import Aligned, OnStep, Training, arguments, finish, start
from pluralllm_fl.errors import ConfigError

PATIENCE = 10  # steps in a row without any reward that end the training


def grpo(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    reward: Reward,
    training: Training | None = None,
    *,
    generations: int = 8,
    completion_tokens: int = 1,
    beta: float = 0.0,
    on_step: OnStep | None = None,
) -> Aligned:
    """Train a policy on the rewards of its own completions.

    A completion's advantage is its reward less the mean of its prompt's completions; it is not
    divided by their standard deviation, which would weigh prompts differently.

    Parameters
    ----------
    policy : Policy
        It is trained in place.
    rows : sequence of dict
        ``prompt`` in TRL's format, and the columns that the reward reads (`prompts.survey_rows`).
    reward : callable
        TRL's signature, ``(prompts, completions, **columns) -> list of float or None``. A
        completion with None teaches nothing.
    generations : int
        Completions of each prompt.
    completion_tokens : int
        Longest completion; 1 is a letter.
    beta : float
        Weight of a KL to the base.

    Raises
    ------
    ConfigError
        If TRL or PEFT are missing, for a reward that is not finite, or if no completion gets one
        in 10 steps (in all of them, if they are fewer).
    """
    training = training or Training()
    if generations < 2:
        raise ConfigError(f"generations = {generations}: a prompt's completions are compared.")
    adapter = start(training)
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            policy.model,
            reward_funcs=_watched(reward, min(PATIENCE, training.steps)),
            args=GRPOConfig(
                per_device_train_batch_size=training.batch * generations,
                num_generations=generations,
                steps_per_generation=1,
                max_completion_length=completion_tokens,
                beta=beta,
                scale_rewards=False,
                **arguments(policy, training, folder),
            ),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=policy.tokenizer,
            peft_config=adapter,
        )
        return finish(trainer, policy, on_step)


def _watched(reward: Reward, patience: int) -> Reward:
    """Refuse rewards that would spoil the policy, or leave it as it is, without a word."""
    silent = 0

    def watched(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        nonlocal silent
        found = list(reward(prompts=prompts, completions=completions, **columns))
        if wrong := [x for x in found if x is not None and not math.isfinite(x)]:
            raise ConfigError(f"The reward function gives {wrong[0]}. Give None for no reward.")
        silent = 0 if any(x is not None for x in found) else silent + 1
        if silent == patience:
            raise ConfigError(
                f"No completion got a reward in {patience} steps; the last one is "
                f"{completions[-1]!r:.80}. Give completions that are no option a penalty "
                "(unmatched), allow longer ones, or reward groups that have answers."
            )
        return found

    watched.__name__ = getattr(reward, "__name__", "reward")
    return watched
