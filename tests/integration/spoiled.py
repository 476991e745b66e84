"""Replies that are spoiled on their way, as a bad node would send them."""

import numpy as np
from flwr.app import Array, Error, Message

# Partition 1 holds "Drusselstein", which trains.
BAD, BAD_GROUP = 1, "Drusselstein"


def set_array(reply: Message, value: np.ndarray) -> Message:
    reply.content["arrays"]["weight"] = Array(value)
    return reply


def error_reply(reply: Message) -> Message:
    request_like = reply  # a reply's metadata answers the same request
    error = Message(
        Error(2, "<class 'pluralllm_fl.errors.DatasetError'>:<'answers.csv is gone'>"),
        reply_to=request_like,
    )
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error


def failing(first: int, last: int, partitions: tuple[int, ...], server_round: int = 2) -> object:
    """Error replies of partitions for the first..last request of one round."""
    seen: dict[int, int] = {}

    def fault(request: Message, reply: Message, partition: int) -> Message:
        if request.metadata.message_type != "train" or partition not in partitions:
            return reply
        if request.content["config"]["server-round"] != server_round:
            return reply
        seen[partition] = seen.get(partition, 0) + 1
        return error_reply(reply) if first <= seen[partition] <= last else reply

    return fault
