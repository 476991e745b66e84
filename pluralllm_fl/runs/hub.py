"""Models on the Hugging Face hub: fetched from there, and sent there."""

import re
from pathlib import Path

from pluralllm_fl.errors import ArtefactError

WEIGHTS = ("config.json", "model.safetensors")  # all that is ever read of a model
CARD = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_folder(run: Path | str, revision: str | None = None) -> Path:
    """Return the folder that holds a model: of a run, the model's own, or fetched from the hub.

    Parameters
    ----------
    run : Path or str
        A run directory, its ``model`` folder, or where there is no such folder the id of a
        repository on the hub. Of that only ``config.json`` and ``model.safetensors`` are fetched.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    ArtefactError
        If the hub has no such model, or cannot be reached and this disk holds no copy.
    """
    folder = Path(run)
    if folder.exists() or isinstance(run, Path) or not _HUB_ID.fullmatch(run):
        return folder / "model" if (folder / "model").is_dir() else folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(run, revision=revision, allow_patterns=list(WEIGHTS)))
    except Exception as error:  # network, permission and disk errors of several libraries
        raise ArtefactError(
            f"There is no folder {run} here, and no such model can be fetched from the hub "
            f"({_reason(error)}). Check the path or the id, or connect once so that a copy is kept."
        ) from error


def push(folder: Path, repo_id: str, *, private: bool, token: str | None) -> str:
    """Send a model and its card to a repository on the hub, made if absent; return its address.

    Raises
    ------
    ArtefactError
        If the hub cannot be reached or refuses it.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=[*WEIGHTS, CARD],  # nothing else that may lie there
            commit_message="A predictor of PluralLLM-FL",
        )
    except Exception as error:  # network and permission errors of several libraries
        raise ArtefactError(
            f"The model cannot be sent to '{repo_id}' ({_reason(error)}). Check the id, your "
            "access (`hf auth login`) and the connection."
        ) from error
    return str(url)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
