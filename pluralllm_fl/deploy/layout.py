"""What a new federation's folder holds: one part for the server, one for every node."""

import json
import os
import pwd
import secrets
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Literal

import jinja2

from pluralllm_fl.config import toml
from pluralllm_fl.deploy import names
from pluralllm_fl.deploy.certificates import (
    Authority,
    certificate_pem,
    key_pem,
    node_keys,
    server_key,
)
from pluralllm_fl.deploy.files import FOLDER, Files, free_folder, new_folder, write_tree
from pluralllm_fl.errors import ConfigError

FIRST_RUNTIME_PORT = 9101
_LIST_HEAD = """\
# Whose key (keys/NAME.pub) may hold which group, train or evaluate. The server refuses every other
# claim. `pluralllm deploy add` keeps this up to date; a change counts at once.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """One organisation's node."""

    group: str
    slug: str
    role: Literal["train", "evaluate"]
    superlink: str
    runtime_port: int


def create(
    folder: Path, *, seen: str, unseen: str, servers: str, port: int, years: int
) -> list[NodePlan]:
    """Write a federation's folder, completely or not at all.

    Parameters
    ----------
    folder : Path
        New or empty, in no git work tree.
    seen, unseen : str
        ``"A;B"``: groups that train, and groups that are only evaluated.
    servers : str
        ``"HOST;HOST2"``: every name and address of the server; nodes connect to the first.
    port : int
        Public port. The SuperLink itself listens on the next one, on this machine only.
    years : int
        Validity of the server's certificate.

    Raises
    ------
    ConfigError
        For a folder, group or server that cannot be used.
    ArtefactError
        If the folder cannot be written.
    """
    folder = free_folder(folder)
    hosts = names.hosts(servers)
    training, evaluated = names.groups(seen, unseen)
    if not training:
        raise ConfigError("--groups is empty: name at least one group that trains.")
    nodes = plan_nodes(training, evaluated, hosts[0], port)

    authority, key = Authority.create(years), server_key()
    certificate = authority.issue(hosts, key.public_key(), years)
    trusted = certificate_pem(authority.certificate)
    values = {
        "folder": folder,
        "server": folder / "server",
        "hosts": hosts,
        "ipv6": any(":" in host for host in hosts),
        "port": port,
        "user": _user(),
        "venv": sys.prefix if sys.prefix != sys.base_prefix else "",
        "seen": training,
        "unseen": evaluated,
        "superlink": names.address(hosts[0], port),
        "until": certificate.not_valid_after_utc.date(),
    }
    files: Files = {
        ".gitignore": b"*\n",
        "README.md": _render("README.md.j2", values),
        "docker/Dockerfile": _render("docker/Dockerfile.j2", values),
        "ca/ca.crt": trusted,
        "ca/ca.key": key_pem(authority.key),
        "server/ca.crt": trusted,
        "server/server.crt": certificate_pem(certificate),
        "server/server.key": key_pem(key),
        "server/superexec.key": secrets.token_hex(32).encode(),
        "server/state": FOLDER,
        **{f"server/{name}": content for name, content in _rendered("server", values)},
    }
    for node in nodes:
        files |= node_files(node, trusted)
    files["server/nodes.toml"] = "".join([_LIST_HEAD, *map(list_entry, nodes)]).encode()
    with new_folder(folder) as temporary:
        write_tree(temporary, files)
    return nodes


def plan_nodes(
    seen: Sequence[str], unseen: Sequence[str], host: str, port: int, taken: Collection[str] = ()
) -> list[NodePlan]:
    """Give every group a folder name and a local port that no other node of this list has."""
    groups = [*seen, *unseen]
    # Nodes that share a machine (a trial) must not share a port, nor take the server's.
    ports = (p for p in count(FIRST_RUNTIME_PORT + len(taken)) if p not in (port, port + 1))
    return [
        NodePlan(
            group=group,
            slug=slug,
            role="train" if group in seen else "evaluate",
            superlink=names.address(host, port),
            runtime_port=runtime_port,
        )
        for group, slug, runtime_port in zip(
            groups, names.slugs(groups, taken), islice(ports, len(groups)), strict=True
        )
    ]


def node_files(node: NodePlan, trusted: bytes) -> Files:
    """Return the folder to hand over to one organisation, and its public key for the server."""
    private, public = node_keys(node.slug)
    home = f"nodes/{node.slug}"
    return {
        f"server/keys/{node.slug}.pub": public,
        f"{home}/ca.crt": trusted,
        f"{home}/node.key": private,
        f"{home}/node.pub": public,
        f"{home}/state": FOLDER,
        **{f"{home}/{name}": text for name, text in _rendered("node", {"node": node})},
    }


def list_entry(node: NodePlan) -> str:
    """Return what the server's list of keys says of a node; `federation.keys` reads it."""
    return f"\n[{node.slug}]\n{toml({'group': node.group, 'role': node.role})}"


def _rendered(part: str, values: dict[str, object]) -> Iterator[tuple[str, bytes]]:
    """Render the templates of one part; their tree is the tree that is written."""
    for template in _environment().list_templates():
        if template.startswith(f"{part}/"):
            name = template.removeprefix(f"{part}/").removesuffix(".j2")
            yield name, _render(template, values)


def _render(template: str, values: dict[str, object]) -> bytes:
    return _environment().get_template(template).render(values).encode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"sh": _sh, "quoted": _quoted, "unit": _unit, "compose": _compose}
    return environment


def _sh(value: object) -> str:
    """Quote one word of a shell script."""
    return shlex.quote(str(value))


def _quoted(value: object) -> str:
    """Quote a text of TOML or YAML: both read JSON's."""
    return json.dumps(str(value), ensure_ascii=False)


def _unit(value: object) -> str:
    """Quote one word of a systemd unit."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("%", "%%") + '"'


def _compose(value: object) -> str:
    """Quote a text of a Compose file."""
    return _quoted(value).replace("$", "$$")


def _user() -> str:
    """Return who runs this; a user without a name by number."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
