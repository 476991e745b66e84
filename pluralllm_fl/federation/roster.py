"""The roster: which node holds which group, in which role, before anything is trained."""

import hashlib
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from pluralllm_fl.errors import FederationError, nearest
from pluralllm_fl.federation.keys import NodeKeys
from pluralllm_fl.federation.lost_messages import GONE
from pluralllm_fl.wire.messages import Introduction, query

logger = logging.getLogger("flwr.pluralllm_fl")

NEWS_SECONDS = 30.0  # between two lines that say who is still awaited


@dataclass(frozen=True, slots=True)
class Node(Introduction):
    """One organisation's node as it introduced itself."""

    node_id: int


@dataclass(slots=True)
class Roster:
    """The nodes of a run, sorted by group name; a node's rank (from 1) is its place here."""

    nodes: list[Node]
    keys: NodeKeys | None = None
    _strangers: "_Query | None" = None

    @property
    def simulated(self) -> bool:
        """Whether the nodes are partitions of one data set on the server's own machine."""
        return any(node.groups for node in self.nodes)

    @property
    def seen(self) -> list[str]:
        """Groups that train."""
        return [node.group for node in self.nodes if node.role == "train"]

    @property
    def unseen(self) -> list[str]:
        """Groups that are only evaluated."""
        return [node.group for node in self.nodes if node.role == "evaluate"]

    @property
    def dimension(self) -> int:
        """Embedding dimension that all nodes agree on."""
        return self.nodes[0].dimension

    @property
    def embedding(self) -> str:
        """Fingerprint of the language model that all nodes agree on."""
        return self.nodes[0].embedding

    @property
    def fingerprint(self) -> str:
        """Hash over the nodes' data fingerprints in order of group names."""
        lines = "\n".join(f"{node.group}\t{node.role}\t{node.fingerprint}" for node in self.nodes)
        return hashlib.sha256(lines.encode()).hexdigest()

    def ranks(self, *, train: bool) -> list[int]:
        """Return the ranks of the training nodes, or of all nodes."""
        return [r for r, n in enumerate(self.nodes, 1) if not train or n.role == "train"]

    def refresh(self, grid: Grid) -> set[int]:
        """Find restarted nodes that came back with a new id; return the ids now online."""
        online, query = self._meet(grid)
        lost = {n.group: i for i, n in enumerate(self.nodes) if n.node_id not in online}
        deadline = time.monotonic() + 30
        while lost and query.open(()) and time.monotonic() < deadline:
            pause()
        for node in list(query.nodes.values()):
            place = lost.get(node.group)
            if place is None or node.node_id not in online:
                continue
            before = self.nodes[place]
            if node.fingerprint != before.fingerprint:
                self._refuse(node, "its data changed since the run began")
                continue
            if _model(node) != _model(before):
                self._refuse(node, "its language model changed since the run began")
                continue
            self.nodes[place] = replace(before, node_id=node.node_id)
            del query.nodes[node.node_id], lost[node.group]
            logger.info("Node of group '%s' is back.", node.group)
        return online

    def admit(self, grid: Grid, seen: Collection[str], unseen: Collection[str]) -> list[Node]:
        """Take in nodes that joined after the run began; return them.

        With lists of groups only those named in them may join.
        """
        online, query = self._meet(grid)
        admitted = []
        for node in list(query.nodes.values()):
            if node.node_id not in online or node.group in {n.group for n in self.nodes}:
                continue
            try:
                if (seen or unseen) and node.group not in {*seen, *unseen}:
                    raise FederationError("it is neither in seen-groups nor in unseen-groups.")
                self.nodes = _checked([*self.nodes, node], unseen)
            except FederationError as error:
                self._refuse(node, str(error))
                continue
            del query.nodes[node.node_id]
            admitted.append(node)
            logger.info("Node of group '%s' joined.", node.group)
        query.errors.clear()  # whoever mends a refused node is asked again
        return admitted

    def _meet(self, grid: Grid) -> tuple[set[int], "_Query"]:
        """Return the ids now online and the introductions of nodes that are not in the roster."""
        if self._strangers is None:
            self._strangers = _Query(grid, self.keys)
        online = set(grid.get_node_ids())
        self._strangers.open(online - {node.node_id for node in self.nodes})
        return online, self._strangers

    def _refuse(self, node: Node, reason: str) -> None:
        assert self._strangers is not None
        del self._strangers.nodes[node.node_id]
        self._strangers.errors[node.node_id] = reason
        logger.warning("Node of group '%s' cannot take part: %s", node.group, reason)


def collect(
    grid: Grid,
    *,
    expected_nodes: int,
    join_timeout: float,
    answer_timeout: float = 0.0,
    seen: Collection[str] = (),
    unseen: Collection[str] = (),
    keys: NodeKeys | None = None,
) -> Roster:
    """Query every node until the expected number has answered.

    In deployment a node that cannot take part is left out if the expected number of others is
    there.

    Parameters
    ----------
    expected_nodes : int
        Nodes to wait for; 0: the number of groups that a simulation's nodes report.
    join_timeout : float
        Seconds to wait for nodes to come.
    answer_timeout : float
        Seconds to wait longer for nodes that are online and were asked: the first answer of a
        machine takes as long as loading the language model and embedding every text.
    seen, unseen : collection of str
        The run's own lists of groups; empty: none.
    keys : NodeKeys, optional
        Whose node may hold which group.

    Raises
    ------
    FederationError
        If nodes are missing or cannot load their data, the number of simulated nodes is not the
        number of groups, a group is there twice, groups or roles are not those of the lists, no
        node trains or one has nothing to train on, or dimensions differ.
    """
    query = _Query(grid, keys)
    start = news = time.monotonic()
    while True:
        waited = time.monotonic() - start  # before the last look
        online = set(grid.get_node_ids())
        query.open(online)
        for gone in query.errors.keys() - online:  # or it came back mended, under another id
            del query.errors[gone]
        nodes = list(query.nodes.values())
        working = len(online & set(query.pending.values()))
        late = waited > join_timeout + (answer_timeout if working else 0.0)
        if working and time.monotonic() - news > NEWS_SECONDS:
            news = time.monotonic()
            logger.info(
                "%d node(s) joined, %d still prepare their data; a machine's first run loads the "
                "language model and embeds every text.", len(nodes), working,
            )  # fmt: skip
        _check_simulation(nodes, expected_nodes)
        deployed = expected_nodes > 0 and not any(node.groups for node in nodes)
        # A deployment waits for nodes that are still to come, and does without a broken one. Who
        # passed for another is not the one that is still to come, nor is its next answer awaited.
        broken = len(query.errors.keys() - query.refused)
        awaited = set(query.pending.values()) - query.refused
        missed = expected_nodes - len(nodes) if deployed else broken
        if not query.pending and 0 < missed <= broken:
            raise FederationError(f"{len(query.errors)} node(s) cannot take part: {query.reasons}")
        expected = expected_nodes or max((node.groups for node in nodes), default=0)
        if nodes and not expected:
            raise FederationError(
                "The nodes do not say how many groups there are: set expected-nodes to the "
                "number of organisations that take part."
            )
        enough = bool(expected) and len(nodes) >= expected
        if enough and (waited > join_timeout or not awaited):
            if query.errors:
                logger.warning("%d node(s) are left out: %s", len(query.errors), query.reasons)
            _check_number(nodes, expected)
            _check_lists(nodes, expected, seen, unseen)
            return Roster(_checked(nodes, unseen), keys)
        if late:
            raise FederationError(_missing(nodes, expected, join_timeout, working, query.reasons))
        pause()


def reason_of(reply: Message) -> str:
    """Return the node's own words from an error reply, without Python's decoration."""
    reason = (reply.error.reason or f"error code {reply.error.code}").strip()
    # Flower's form of an exception. Delete when an error's class and text come apart.
    wrapped = re.fullmatch(r"<class '([\w.]+)'>:<'(.*)'>", reason, re.DOTALL)
    if wrapped is None:
        return reason
    name, text = wrapped.groups()
    if name.startswith("pluralllm_fl."):
        return text
    return f"{name.rsplit('.', 1)[-1]}: {text}"


def pause(seconds: float = 0.1) -> None:
    """Sleep between two looks at the grid; end this thread if Flower was told to stop.

    In a simulation Flower runs the ServerApp in a second thread, which no signal reaches: when
    SIGTERM or Ctrl-C ends the main thread, this is where the run notices.
    """
    time.sleep(seconds)
    if not threading.main_thread().is_alive():
        raise SystemExit("Flower was stopped")


class _Query:
    """Outstanding queries and the answers so far, by node id."""

    def __init__(self, grid: Grid, keys: NodeKeys | None) -> None:
        self.grid = grid
        self.keys = keys
        self.nodes: dict[int, Node] = {}
        self.errors: dict[int, str] = {}
        self.refused: set[int] = set()  # who passed for another, and has not mended it
        self.pending: dict[str, int] = {}

    @property
    def reasons(self) -> str:
        """Why nodes cannot take part, in their own words."""
        return "; ".join(sorted(set(self.errors.values())))

    def open(self, node_ids: Iterable[int]) -> bool:
        """Ask nodes that were not asked yet, take in what came; True while some are open."""
        asked = {*self.nodes, *self.errors, *self.pending.values()}
        messages = [query(node_id) for node_id in node_ids if node_id not in asked]
        if messages:
            self.grid.push_messages(messages)
            self.pending |= {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        replies = self.grid.pull_messages(set(self.pending)) if self.pending else ()
        for reply in replies:
            node_id = self.pending.pop(reply.metadata.reply_to_message_id, None)
            if node_id is not None:
                self._take(node_id, reply)
        return bool(self.pending)

    def _take(self, node_id: int, reply: Message) -> None:
        if reply.has_error():
            # A node that just left is still listed for a while; it is not an error.
            if reply.error.code not in GONE:
                self.errors[node_id] = reason_of(reply)
            return
        try:
            introduction = Introduction.parse(reply.content)
        except (KeyError, TypeError, ValueError) as error:
            self.errors[node_id] = (
                f"unreadable introduction of a node ({error!r}): server and nodes need the same "
                "version of pluralllm-fl"
            )
            return
        if self.keys and (problem := self.keys.problem(node_id, introduction)):
            self.keys.tell(problem)
            self.errors[node_id] = problem
            self.refused.add(node_id)
            return
        self.refused.discard(node_id)
        self.nodes[node_id] = Node(**asdict(introduction), node_id=node_id)


def _check_simulation(nodes: list[Node], expected_nodes: int) -> None:
    for node in nodes:
        if node.groups and node.supernodes and node.supernodes != node.groups:
            raise FederationError(_wrong_number(node.supernodes, node.groups))
        if node.groups and not expected_nodes and len(nodes) > node.groups:
            raise FederationError(_wrong_number(len(nodes), node.groups))


def _check_number(nodes: list[Node], expected: int) -> None:
    if len(nodes) > expected:
        raise FederationError(
            f"{len(nodes)} nodes joined but expected-nodes = {expected}: "
            f"{', '.join(sorted(node.group for node in nodes))}. Set expected-nodes to "
            f"{len(nodes)} or stop the others."
        )


def _checked(nodes: list[Node], unseen: Collection[str]) -> list[Node]:
    """Return the nodes by group name if they can work together."""
    nodes = sorted(nodes, key=lambda node: node.group)
    counts = Counter(node.group for node in nodes)
    if twice := sorted(group for group, count in counts.items() if count > 1):
        raise FederationError(
            f"Several nodes claim the same group: {', '.join(twice)}. Every node needs a group "
            "of its own: check --node-config of these nodes."
        )
    for node in nodes:
        if node.role == "train" and node.group in unseen:
            raise FederationError(
                f"Group '{node.group}' is in unseen-groups but its node's role is 'train'. Remove "
                "role from its --node-config, or the group from unseen-groups."
            )
    if idle := [n.group for n in nodes if n.role == "train" and not n.train_questions]:
        raise FederationError(
            f"No training questions are left of: {', '.join(idle)}. Lower test-fraction or "
            "validation-fraction, or name these groups in unseen-groups, which are only evaluated."
        )
    if not any(node.role == "train" for node in nodes):
        raise FederationError(
            "No node trains: every group is evaluate-only. Name at least one group in seen-groups."
        )
    if len(set(map(_model, nodes))) > 1:
        listed = ", ".join(
            f"{n.group}: {n.embedding} ({n.dimension} dimensions, {n.dtype} on {n.device})"
            for n in nodes
        )
        raise FederationError(
            f"The nodes embed questions differently: {listed}. All nodes must use the same "
            "embedding-model and version of pluralllm-fl; large models compute in float32 on CPU "
            "only (device = 'cpu' in --node-config)."
        )
    devices = {node.device: node.group for node in nodes}
    if len(devices) > 1:
        logger.warning(
            "Nodes embed on different devices (%s). Their vectors differ by about 1e-6: results "
            "are not bit-identical with those of one device.",
            ", ".join(f"{device}: {group}" for device, group in sorted(devices.items())),
        )
    return nodes


def _model(node: Node) -> tuple[str, int, str]:
    """Return what must be the same on every node for vectors to be comparable."""
    return node.embedding, node.dimension, node.dtype


def _check_lists(
    nodes: list[Node], expected: int, seen: Collection[str], unseen: Collection[str]
) -> None:
    joined, listed = [node.group for node in nodes], [*seen, *unseen]
    absent = [group for group in listed if group not in joined]
    # A federation that begins with fewer nodes than it lists takes the others in when they come.
    later = len(listed) > expected and set(joined) <= set(listed)
    if absent and not later:
        names = ", ".join(f"'{group}'{nearest(group, joined)}" for group in absent)
        raise FederationError(
            f"seen-groups or unseen-groups names groups that no node holds: {names}. Joined: "
            f"{', '.join(sorted(joined))}. Mend the lists or start these groups' nodes."
        )
    for node in nodes:
        if node.role == "evaluate" and node.group in seen:
            logger.warning(
                "Group '%s' is in seen-groups but its node is evaluate-only: it will not train.",
                node.group,
            )


def _wrong_number(supernodes: int, groups: int) -> str:
    return (
        f"The simulation has {supernodes} node(s) but the data set has {groups} groups, one node "
        f'each. Run: flwr run . --federation-config "num-supernodes={groups} '
        f'client-resources-num-cpus=1"'
    )


def _missing(nodes: list[Node], expected: int, timeout: float, working: int, reasons: str) -> str:
    simulated = next((node.groups for node in nodes if node.groups), 0)
    if simulated and len(nodes) != simulated:
        return _wrong_number(len(nodes), simulated)
    joined = ", ".join(sorted(node.group for node in nodes)) or "none"
    wanted = f"{expected} nodes" if expected else "any node"
    text = f"Waited join-timeout = {timeout:g} s for {wanted}; joined: {joined}."
    if working:
        text += f" {working} node(s) are online but did not answer within round-timeout either."
    if reasons:
        text += f" Errors: {reasons}."
    return text + " Start the missing nodes, or set expected-nodes to the number that take part."
