"""The ClientApp: introduce, train, evaluate and reward over one group's data."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pluralllm_fl.federation.node import LocalNode, discreet
from pluralllm_fl.wire.changes import NODE_ENDS
from pluralllm_fl.wire.messages import (
    ARRAYS,
    Order,
    RewardRequest,
    evaluated,
    rewarded,
    trained,
)

app = ClientApp(mods=NODE_ENDS)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer the roster: which group this node holds, its role and its counts."""
    with discreet(context):
        introduction = LocalNode.from_context(context).introduce()
    return Message(introduction.records(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received predictor on this node's group; reply with arrays and metrics.

    When asked for, the scores of the predictor as received ride on the reply.
    """
    arrays = message.content.array_records[ARRAYS]
    with discreet(context):
        order, node = Order.parse(message.content), LocalNode.from_context(context)
        update, report, scores = node.train(arrays, order)
    return Message(trained(update, report, scores), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received predictor on this node's group; reply with numbers only."""
    with discreet(context):
        scores = LocalNode.from_context(context).evaluate(message.content.array_records[ARRAYS])
    return Message(evaluated(scores), reply_to=message)


@app.query("reward")
def reward(message: Message, context: Context) -> Message:
    """Score a policy's rollouts for this node's group; reply with one number each."""
    with discreet(context):
        request, node = RewardRequest.parse(message.content), LocalNode.from_context(context)
        rewards = node.reward(message.content.array_records[ARRAYS], request)
    return Message(rewarded(rewards), reply_to=message)
