"""Has a node lost the message that it was working on? A short question behind it tells."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# Private to Flower: the codes of `flwr.app.Error`, which tell a node that is away from one that
# failed. Delete when flwr.app exports them beside Error.
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from pluralllm_fl.wire.messages import query

# Flower counts a node as online for 60 s after its last heartbeat. One that is killed and back
# right after has lost its message, and nobody else would notice before the round times out. Delete
# this class when a SuperLink fails the messages of a node that comes back under another id.
ASK_AFTER = 75.0
GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)


@dataclass(slots=True)
class LostMessages:
    """Asks nodes that keep a message for long a short question behind it.

    A node answers one message after the other, oldest first. An answer to the later question
    without one to the message says that the message is lost.
    """

    grid: Grid
    after: float = field(default_factory=lambda: ASK_AFTER)
    _since: dict[str, float] = field(default_factory=dict)
    _asked: dict[str, str] = field(default_factory=dict)

    def watch(self, message_id: str) -> None:
        """Start the clock of a message, unless it runs."""
        self._since.setdefault(message_id, time.monotonic())

    def ask(self, pending: Iterable[tuple[str, int]]) -> None:
        """Ask the nodes of (message id, node id) pairs that are due."""
        now, waiting = time.monotonic(), set(self._asked.values())
        due = [
            (message_id, node_id)
            for message_id, node_id in pending
            if message_id not in waiting and now - self._since[message_id] > self.after
        ]
        questions = [query(node_id) for _, node_id in due]
        accepted = set(self.grid.push_messages(questions)) if questions else set()
        for question, (message_id, _) in zip(questions, due, strict=True):
            self._since[message_id] = now
            if question.metadata.message_id in accepted:
                self._asked[question.metadata.message_id] = message_id

    def answered(self) -> set[str]:
        """Return the ids of messages behind which a question was answered.

        Look for a reply to these once more: only without one they are lost.
        """
        if not self._asked:
            return set()
        found = set()
        for reply in self.grid.pull_messages(set(self._asked)):
            message_id = self._asked.pop(reply.metadata.reply_to_message_id, None)
            # An offline node's message gets an error of its own from the SuperLink.
            gone = reply.has_error() and reply.error.code in GONE
            if message_id is not None and not gone:
                found.add(message_id)
        return found
