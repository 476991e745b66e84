"""Changes to a federation that exists: more nodes, a new server certificate."""

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm_fl.config import split_names, toml
from pluralllm_fl.deploy import names
from pluralllm_fl.deploy.certificates import Authority, certificate_pem, hosts_of
from pluralllm_fl.deploy.files import new_folder, outside_git, write_tree
from pluralllm_fl.deploy.layout import NodePlan, list_entry, node_files, plan_nodes
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.runs.artefacts import write_atomic


def add(folder: Path, *, seen: str, unseen: str) -> list[NodePlan]:
    """Write keys and folders of new nodes and let the run config expect them.

    Raises
    ------
    ConfigError
        For groups that are none, or are in the federation already.
    ArtefactError
        If the folder is no federation's or cannot be written.
    """
    folder = outside_git(folder)
    server = folder / "server"
    run_config = server / "federation.toml"
    text = _read(run_config).decode()
    config = _parsed(run_config, text)
    before = {key: list(split_names(str(config.get(f"{key}-groups", "")))) for key in _LISTS}
    training, evaluated = names.groups(seen, unseen, taken=before["seen"] + before["unseen"])
    if not training and not evaluated:
        raise ConfigError("Name the new groups: --groups 'D;E', or --unseen for evaluate-only.")

    seen_after, unseen_after = before["seen"] + training, before["unseen"] + evaluated
    changes: dict[str, int | str] = {
        "expected-nodes": len(seen_after) + len(unseen_after),
        "seen-groups": ";".join(seen_after),
        "unseen-groups": ";".join(unseen_after),
    }
    # Someone may have chosen another number on purpose.
    if config.get("min-nodes") == len(before["seen"]):
        changes["min-nodes"] = len(seen_after)
    text = _changed(run_config, text, changes)

    taken = {path.stem for path in (server / "keys").glob("*.pub")}
    taken |= {path.name for path in (folder / "nodes").glob("*")}
    host = hosts_of(_certificate(server / "server.crt"))[0]
    connection = server / "flwr" / "config.toml"
    local = _parsed(connection, _read(connection).decode())["superlink"]["federation"]["address"]
    port = int(str(local).rpartition(":")[2]) - 1
    nodes = plan_nodes(training, evaluated, host, port, taken)
    trusted = _read(server / "ca.crt")
    for node in nodes:
        files = node_files(node, trusted)
        public = files.pop(key := f"server/keys/{node.slug}.pub") or b""
        home = f"nodes/{node.slug}"
        with new_folder(folder / home) as temporary:
            write_tree(temporary, {n.removeprefix(f"{home}/"): f for n, f in files.items()})
        write_atomic(folder / key, public, mode=0o600)
    # A federation of an earlier version has no list of keys; one of the new nodes alone would
    # refuse all others.
    if (keys := server / "nodes.toml").is_file():
        entries = "".join(map(list_entry, nodes))
        write_atomic(keys, _read(keys) + entries.encode(), mode=0o600)

    write_atomic(run_config, text.encode(), mode=0o600)
    return nodes


def renew(folder: Path, years: int) -> date:
    """Sign the server's certificate again, for the same key, names and addresses.

    Returns
    -------
    date
        Until when it is valid.

    Raises
    ------
    ArtefactError
        If the authority is not here or the certificate cannot be read or written.
    """
    folder = folder.expanduser().resolve()
    path = folder / "server" / "server.crt"
    old = _certificate(path)
    key = old.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ArtefactError(f"{path} is not a certificate of this federation.")
    new = Authority.read(folder / "ca").issue(hosts_of(old), key, years)
    write_atomic(path, certificate_pem(new), mode=0o600)
    return new.not_valid_after_utc.date()


_LISTS = ("seen", "unseen")


def _changed(path: Path, text: str, changes: dict[str, int | str]) -> str:
    """Set keys of a run config; comments and all other lines stay as they are."""
    for key, value in changes.items():
        line = toml({key: value}).rstrip("\n")
        pattern = rf"""(?m)^{key}\s*=\s*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s#]+)"""
        text, found = re.subn(pattern, line.replace("\\", r"\\"), text)
        if not found:
            text = f"{text.rstrip()}\n{line}\n"
    config = _parsed(path, text)
    if any(config.get(key) != value for key, value in changes.items()):
        wanted = toml(changes)
        raise ArtefactError(f"{path} has a form that is not known. Set in it by hand:\n{wanted}")
    return text


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ArtefactError(f"{path} is no valid TOML: {error}.") from None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise ArtefactError(f"{path} is no certificate: {error}.") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be read ({error.strerror}). Give the folder that "
            "pluralllm deploy init wrote."
        ) from None
