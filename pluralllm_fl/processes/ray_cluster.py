"""Ray under a simulation: one of our own that nobody else can use, or a cluster that is named."""

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from pluralllm_fl.errors import FederationError

REACH_SECONDS = 10.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def existing_cluster() -> bool:
    """Whether the user names a cluster in RAY_ADDRESS."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def reach_cluster() -> None:
    """Fail at once where Ray itself would try for minutes."""
    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.rpartition(":")
    if address == "auto":  # Ray looks for a cluster on this machine
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise FederationError(
            f"RAY_ADDRESS = {address}: no Ray cluster answers there ({error}). Give host:port of "
            "a running one, from one of its machines (`ray start --head` starts one), or unset it."
        ) from None


def ray_environment(folder: Path, numerics: Mapping[str, str]) -> dict[str, str]:
    """Return Ray's variables for a run in `folder`.

    A Ray of our own announces itself on the loopback address, and answers nobody without the
    run's own token. A cluster keeps the token, or lack of one, that the user gave it.
    """
    if existing_cluster():
        return {_JOB: _job(folder / "app", numerics)}
    return {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Whether Ray may span machines; not only on the systems in its name.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # The nodes need workers of their own, with Flower's settings: others would start in vain.
        "RAY_prestart_worker_first_driver": "0",
    }


def _job(app: Path, numerics: Mapping[str, str]) -> str:
    """Return the settings that Ray adds to the run's: workers elsewhere inherit nothing from us.

    They get the ClientApp and this package, so that every machine runs the same code. A Ray job
    that runs us has settings of its own.
    """
    job = json.loads(os.environ.get(_JOB, "{}"))
    given = job.get("runtime_env") or {}
    code = [str(app / "client_app.py"), str(Path(__file__).resolve().parents[1])]
    job["runtime_env"] = {
        **given,
        "py_modules": [*given.get("py_modules", []), *code],
        "env_vars": {**given.get("env_vars", {}), **numerics},
    }
    return json.dumps(job)
