"""Training on preference pairs, by TRL's DPOTrainer."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from pluralllm_fl.alignment.policy import Policy
from pluralllm_fl.alignment.training import Aligned, OnStep, Training, arguments, finish, start


def dpo(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    training: Training | None = None,
    *,
    beta: float = 0.1,
    on_step: OnStep | None = None,
) -> Aligned:
    """Train a policy on preference pairs.

    With pairs as `pairs.draw_pairs` draws them the optimum is ``policy ∝ base · p^(1/beta)``:
    at beta 1 the base policy times p, with a small beta nearly all on the most popular answer.

    Parameters
    ----------
    policy : Policy
        It is trained in place; the reference is the policy without the adapter.
    rows : sequence of dict
        ``prompt``, ``chosen`` and ``rejected`` in TRL's format, plain or conversations
        (`pairs.lettered_rows`).
    beta : float
        Weight of the KL to the base.

    Raises
    ------
    ConfigError
        If TRL or PEFT are missing.
    """
    training = training or Training()
    adapter = start(training)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    with TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            policy.model,
            args=DPOConfig(
                per_device_train_batch_size=training.batch,
                beta=beta,
                **arguments(policy, training, folder),
            ),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=policy.tokenizer,
            peft_config=adapter,
        )
        return finish(trainer, policy, on_step)
