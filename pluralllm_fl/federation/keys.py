"""The federation's own list of keys: whose node may hold which group, in which role.

A registered key lets a node in, as whatever group its own settings name. So the server looks up
the key that Flower knows a node by, and asks the list that `deploy init` wrote. Nodes take no part
in this and cannot tell otherwise: the SuperLink asks for the key's signature at every call, gives a
key one node id, and takes a reply only from whom the message was for.
"""

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

# Private to Flower: what `Grid.get_nodes` returns; its key is there since flwrlabs/flower#5985, and
# empty unless the grid is a real one. Delete when a public type tells a node's key.
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from pluralllm_fl.errors import FederationError
from pluralllm_fl.wire.messages import Introduction


class Holder(NamedTuple):
    """What a key may be."""

    group: str
    role: str


class NodeKeys:
    """Tells whether a node's key is that of the group and role that it claims.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes; must have `get_nodes`, as that of a real run has.
    path : str
        TOML with a table ``[NAME]`` of ``group`` and ``role`` for each ``keys/NAME.pub`` beside it
        (OpenSSH); an entry without its key is nobody's. Empty: there is no list, and every claim
        is taken. Changes count from the next look on.
    tell : callable
        Told why a node's introduction was refused.

    Raises
    ------
    FederationError
        If the list or a key cannot be read, or the grid does not tell keys.
    """

    def __init__(self, grid: Grid, path: str, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._path = Path(path)
        self._nodes: Callable[[], Iterable[NodeInfo]] | None = None
        self._keys: dict[int, bytes] = {}
        self._read: tuple[list[int], dict[bytes, Holder]] = [], {}
        if path:
            self._nodes = getattr(grid, "get_nodes", None)
            if self._nodes is None:
                raise FederationError(
                    f"node-keys = '{path}': this version of Flower does not tell nodes' keys."
                )
            self._listed()

    def problem(self, node_id: int, claim: Introduction) -> str:
        """Return why a node may not be what it claims; empty if it may."""
        if self._nodes is None:
            return ""
        if node_id not in self._keys:  # for good: Flower gives a key one id, and no id two keys
            self._keys |= {node.node_id: node.public_key for node in self._nodes()}
        claimed, says = Holder(claim.group, claim.role), f"'{claim.group[:80]}' ({claim.role})"
        if node_id not in self._keys:
            return f"The node that says it is {says} left before Flower could tell its key."
        holder = self._listed().get(self._keys[node_id])
        if holder is None:
            return f"The node that says it is {says} has a key that is not in {self._path}."
        if holder != claimed:
            return (
                f"The node with the key of '{holder.group}' ({holder.role}) says it is {says}. "
                "Mend GROUP and ROLE in its node.env."
            )
        if claim.groups or claim.supernodes:
            return f"The node of {says} says that it is simulated."
        return ""

    def _listed(self) -> dict[bytes, Holder]:
        """Return who may be what, by key as Flower writes it; read again after a change."""
        folder = self._path.parent / "keys"
        try:
            stamp = [path.stat().st_mtime_ns for path in (self._path, folder)]
            if stamp != self._read[0]:
                entries = tomllib.loads(self._path.read_text("utf-8"))
                self._read = stamp, {
                    _key(file): Holder(str(entry["group"]), str(entry["role"]))
                    for name, entry in entries.items()
                    if (file := folder / f"{name}.pub").is_file()
                }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
            raise FederationError(
                f"node-keys = '{self._path}' cannot be read ({type(error).__name__}: {error}). "
                "It has a table with group and role for every key in the folder keys beside it."
            ) from None
        return self._read[1]


def _key(file: Path) -> bytes:
    key = load_ssh_public_key(file.read_bytes())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
