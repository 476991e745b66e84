"""The guarded grid: what a strategy sees of the federation, and the exchange of messages."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

# Private to Flower: the type of `Grid.run`, which a Grid of our own must declare. Delete when
# flwr.app or flwr.serverapp exports it.
from flwr.supercore.run import Run

from pluralllm_fl.errors import FederationError
from pluralllm_fl.federation.lost_messages import GONE, LostMessages
from pluralllm_fl.federation.roster import Node, Roster, pause, reason_of
from pluralllm_fl.wire.packing import Packings, packed, unpacked
from pluralllm_fl.wire.records import count_bytes

logger = logging.getLogger("flwr.pluralllm_fl")

_MAX_LOOKS = 20


@dataclass(slots=True)
class Outcome:
    """What came of one message: a reply's content, or the reason why there is none.

    `norms` are the L2 norms of an update, by array.
    """

    message: Message
    node: Node
    content: RecordDict | None = None
    problem: str = ""
    unreachable: bool = True
    norms: dict[str, float] = field(default_factory=dict)


class GuardedGrid(Grid):
    """A Grid on which nodes are known by rank (1, 2, … in order of group names).

    Real node ids are random; ranks make everything that a strategy derives from ids (sampling,
    per-node state) the same in every run of the same groups. Only nodes allowed in the current
    phase are visible, whether online or not: the set changes only when a late node is admitted.
    """

    def __init__(self, inner: Grid, roster: Roster, timeout: float) -> None:
        self.inner = inner
        self.roster = roster
        self.timeout = timeout
        self.bytes_up = 0
        self.bytes_down = 0
        self.resent: list[str] = []
        self._train = True
        self._looks = 0

    def open_phase(self, *, train: bool) -> None:
        """Show the nodes of this phase and count bytes from zero."""
        self._train = train
        self._looks = self.bytes_up = self.bytes_down = 0

    def get_node_ids(self) -> list[int]:
        """Return the ranks of the nodes allowed in this phase."""
        self._looks += 1
        if self._looks > _MAX_LOOKS:
            raise FederationError(
                "The strategy waits for more nodes than take part "
                f"({len(self.roster.ranks(train=self._train))}): lower its min_… or fraction_… "
                "values in strategy-args."
            )
        return self.roster.ranks(train=self._train)

    def exchange(self, messages: Sequence[Message]) -> list[Outcome]:
        """Send messages addressed by rank; wait for the replies or the round timeout.

        Returns one outcome a message, in order of group names whatever order replies came in.
        """
        outcomes = [Outcome(m, self.node(m)) for m in messages]
        outcomes.sort(key=lambda outcome: outcome.node.group)
        pending = self._push(outcomes)
        deadline = time.monotonic() + self.timeout
        lost = None if self.roster.simulated else LostMessages(self.inner)
        delay, longest = 0.02, 0.1 if self.roster.simulated else 1.0
        while pending and time.monotonic() < deadline:
            if lost is not None:
                pending = self._resend(lost, pending)
            delay = 0.02 if self._pull(pending) else min(delay * 1.5, longest)
            if pending:
                pause(delay)
        for outcome in pending.values():
            outcome.problem = f"no reply within round-timeout = {self.timeout:g} s"
        return outcomes

    def admit(self, seen: Sequence[str], unseen: Sequence[str]) -> list[Node]:
        """Take nodes that joined late into the roster; only between rounds, as ranks change."""
        return [] if self.roster.simulated else self.roster.admit(self.inner, seen, unseen)

    def await_nodes(self, groups: Iterable[str], seconds: float) -> None:
        """Wait until the nodes of these groups are online, at most this long."""
        wanted = set(groups)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            online = self.roster.refresh(self.inner)
            if all(n.node_id in online for n in self.roster.nodes if n.group in wanted):
                return
            pause(0.5)

    def node(self, message: Message) -> Node:
        """Return whom a message is addressed to.

        Raises
        ------
        FederationError
            If that node may not take part in this phase.
        """
        rank, nodes = message.metadata.dst_node_id, self.roster.nodes
        scored = message.metadata.message_type.startswith(MessageType.EVALUATE)
        trains = self._train and not scored
        # Looked up, not listed: of 10,000 nodes every one may be addressed in a phase.
        if not 1 <= rank <= len(nodes) or (trains and nodes[rank - 1].role != "train"):
            raise FederationError(f"The strategy addressed node {rank}, which may not take part.")
        return nodes[rank - 1]

    def _push(self, outcomes: list[Outcome]) -> dict[str, Outcome]:
        online = self.roster.refresh(self.inner)
        sent: list[tuple[Message, Outcome]] = []
        known: Packings = {}
        for outcome in outcomes:
            metadata, original = outcome.message.metadata, outcome.message.content
            outcome.node = self.node(outcome.message)
            if outcome.node.node_id not in online:
                outcome.problem = "the node is offline"
                continue
            message = Message(
                packed(original, known),
                dst_node_id=outcome.node.node_id,
                message_type=metadata.message_type,
                group_id=metadata.group_id,
                ttl=self.timeout + 60,
            )
            sent.append((message, outcome))
        accepted = set(self.inner.push_messages([m for m, _ in sent])) if sent else set()
        pending = {}
        for message, outcome in sent:
            if message.metadata.message_id in accepted:
                pending[message.metadata.message_id] = outcome
                self.bytes_down += count_bytes(message.content)
            else:
                outcome.problem = "the SuperLink did not take the message"
        return pending

    def _pull(self, pending: dict[str, Outcome]) -> bool:
        """Take in the replies that came; True if there were some."""
        replies = list(self.inner.pull_messages(set(pending)))
        for reply in replies:
            outcome = pending.pop(reply.metadata.reply_to_message_id, None)
            if outcome is not None:
                self._take(outcome, reply)
        return bool(replies)

    def _resend(self, lost: LostMessages, pending: dict[str, Outcome]) -> dict[str, Outcome]:
        """Send again what restarted nodes lost; return the messages that are now pending."""
        for message_id in pending:
            lost.watch(message_id)
        lost.ask((message_id, o.node.node_id) for message_id, o in pending.items())
        if not (suspects := lost.answered()):
            return pending
        while self._pull(pending):
            pass
        again = [pending.pop(message_id) for message_id in suspects if message_id in pending]
        for outcome in again:
            self.resent.append(outcome.node.group)
        return pending | self._push(again)

    def _take(self, outcome: Outcome, reply: Message) -> None:
        if reply.has_error():
            outcome.problem = reason_of(reply)
            outcome.unreachable = reply.error.code in GONE
            return
        outcome.unreachable = False
        if self.roster.keys is not None:  # a key may be taken off the list while the run goes on
            outcome.problem = self.roster.keys.problem(outcome.node.node_id, outcome.node)
            if outcome.problem:
                return
        self.bytes_up += count_bytes(reply.content)
        try:
            outcome.content = unpacked(reply.content)
        except FederationError as error:
            outcome.problem = str(error)

    # -- the rest of Grid, for strategies that send on their own

    @property
    def run(self) -> Run:
        """Run information."""
        return self.inner.run

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.inner.set_run(run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node's rank."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Exchange messages addressed by rank; only replies without error come back."""
        del timeout  # the run's own round-timeout holds
        outcomes = self.exchange(list(messages))
        return [Message(o.content, reply_to=o.message) for o in outcomes if o.content is not None]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: replies that bypass the guard would not be checked."""
        del messages
        raise FederationError("Strategies must use send_and_receive, not push_messages.")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: replies that bypass the guard would not be checked."""
        del message_ids
        raise FederationError("Strategies must use send_and_receive, not pull_messages.")
