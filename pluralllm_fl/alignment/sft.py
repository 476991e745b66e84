"""Distribution matching: the policy's letters get the shares that were predicted."""

from collections.abc import Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pluralllm_fl.alignment.policy import Policy, left_padded
from pluralllm_fl.alignment.prompts import Prompts, shuffled
from pluralllm_fl.alignment.targets import Target
from pluralllm_fl.alignment.training import Aligned, OnStep, Training, arguments, finish, start

if TYPE_CHECKING:
    from torch import Tensor


def sft(
    policy: Policy,
    targets: Sequence[Target],
    training: Training | None = None,
    *,
    chat: bool | None = None,
    on_step: OnStep | None = None,
) -> Aligned:
    """Train a policy to answer with the letters of the options as `targets` are distributed.

    The loss is KL(target ‖ policy): the cross-entropy of the letters' tokens, among all tokens, to
    the target, less the target's entropy. At 0 the policy says each letter with the option's share
    and nothing else. Every prompt has a new order of options.

    Parameters
    ----------
    policy : Policy
        It is trained in place.
    chat : bool, optional
        How the policy is asked (`Prompts.of`).

    Raises
    ------
    ConfigError
        If TRL or PEFT are missing, for a tokenizer without the letters' tokens, or more options
        than letters.
    """
    training = training or Training()
    prompts = Prompts.of(policy, chat)
    most = max(len(target.distribution) for target in targets)
    letters, rows = prompts.letter_ids(most), _rows(prompts, targets, training, most)
    adapter = start(training)
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    def loss(outputs: Any, labels: "Tensor", **_: Any) -> "Tensor":
        return divergence(outputs.logits[:, -1].float().log_softmax(dim=-1)[:, letters], labels)

    with TemporaryDirectory() as folder:
        trainer = Trainer(
            get_peft_model(policy.model, adapter),
            TrainingArguments(
                per_device_train_batch_size=training.batch,
                remove_unused_columns=False,
                **arguments(policy, training, folder),
            ),
            data_collator=partial(_padded, policy.tokenizer.pad_token_id),
            train_dataset=rows,
            compute_loss_func=loss,
        )
        return finish(trainer, policy, on_step)


def divergence(log_q: "Tensor", p: "Tensor") -> "Tensor":
    """Return the mean over rows of KL(p ‖ q) in nats, a scalar.

    `log_q` (natural log) and `p` have the shape (rows, letters); `p` may hold zeros.
    """
    return (p.xlogy(p) - p * log_q).sum(dim=1).mean()


def _rows(
    prompts: Prompts, targets: Sequence[Target], training: Training, most: int
) -> list[dict[str, Any]]:
    sizes = [len(target.distribution) for target in targets]
    return [
        {
            "ids": prompts.encode(prompts.ask(targets[i].question, targets[i].group, order)),
            "shares": [*targets[i].distribution[order], *[0.0] * (most - sizes[i])],
        }
        for i, order in shuffled(sizes, training.rows, training.seed)
    ]


def _padded(pad: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as the model reads it, with the shares as labels."""
    import torch

    return {
        **left_padded([row["ids"] for row in rows], pad),
        "logits_to_keep": 1,  # all others would be thrown away
        "labels": torch.tensor([row["shares"] for row in rows], dtype=torch.float32),
    }
