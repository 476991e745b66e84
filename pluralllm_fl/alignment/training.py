"""What the trainers of a policy share: settings, LoRA, the end."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pluralllm_fl.alignment.policy import Policy, require_align, silent
from pluralllm_fl.errors import ConfigError

OnStep = Callable[[int, dict[str, float]], None]  # step from 1, what the trainer logs of it


@dataclass(frozen=True)
class Training:
    """How a policy is trained: by LoRA on all linear layers, with AdamW, at a falling rate.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    batch : int
        Prompts of a step (pairs, for DPO).
    learning_rate : float
        Peak; it falls to 0 linearly. TRL's default of 1e-6 is for full fine-tuning.
    rank : int
        Of the adapter; its scale alpha is twice that.
    seed : int
        Adapter, order of prompts and options, sampling.
    """

    steps: int = 100
    batch: int = 8
    learning_rate: float = 3e-4
    rank: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning-rate = {self.learning_rate}: must be above 0.")

    @property
    def rows(self) -> int:
        """Prompts that the training reads."""
        return self.steps * self.batch


@dataclass(frozen=True)
class Aligned:
    """A trained policy, and what the trainer logged of each step (`loss`, `reward`, …).

    The adapter is merged: the model is a plain one, of the architecture that it was.
    """

    policy: Policy
    history: list[dict[str, float]]


def start(training: Training) -> Any:
    """Seed everything and return the adapter's config.

    Raises
    ------
    ConfigError
        If TRL or PEFT are missing.
    """
    require_align()
    from peft import LoraConfig
    from transformers import set_seed

    set_seed(training.seed)  # the adapter is drawn before a trainer seeds
    return LoraConfig(
        r=training.rank,
        lora_alpha=2 * training.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def arguments(policy: Policy, training: Training, folder: str) -> dict[str, Any]:
    """Return the arguments that every trainer gets; some of TRL's defaults are slow on a CPU."""
    device = policy.model.device.type
    return {
        "output_dir": folder,
        "max_steps": training.steps,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
        "use_cpu": device == "cpu",
        "bf16": device != "cpu" and str(policy.model.dtype) == "torch.bfloat16",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": device != "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def finish(trainer: Any, policy: Policy, on_step: OnStep | None) -> Aligned:
    """Train, merge the adapter and return the plain model."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_steps(on_step or (lambda _step, _logs: None)))
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    history = [_told(entry) for entry in trainer.state.log_history if "loss" in entry]
    return Aligned(Policy(model.eval(), policy.tokenizer, policy.source), history)


def _told(entry: dict[str, float]) -> dict[str, float]:
    """Keep the numbers of a step; what no completion had is NaN."""
    return {key: value for key, value in entry.items() if math.isfinite(value)}


def _steps(on_step: OnStep) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **told: Any) -> None:  # noqa: ARG002
            logs = told["logs"]
            if "loss" not in logs:  # the end
                return
            if not math.isfinite(logs["loss"]):
                raise ConfigError(
                    f"The loss is {logs['loss']} at step {state.global_step}: lower learning-rate."
                )
            on_step(state.global_step, logs)

    return Steps()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what TRL and its libraries print off a terminal; errors are raised as ever."""
    require_align()
    import datasets

    log, bars = logging.getLogger("trl"), datasets.is_progress_bar_enabled()
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), silent():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
