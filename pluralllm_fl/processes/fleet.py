"""Asking a SuperLink whether it knows a node's key, without changing anything there."""

from typing import Literal

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

# Private to Flower: the Fleet API as a SuperNode speaks it, with signature, errors and tolerated
# clocks; no public call tells a node whether its key is registered. Delete when Flower has one.
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from pluralllm_fl.errors import FederationError

KeyStatus = Literal["registered", "unregistered", "refused", "unavailable", "foreign"]

# A SuperLink takes a node's signature only while (its clock - the node's) lies between these.
MOST_AHEAD = float(SYSTEM_TIME_TOLERANCE)  # s
MOST_BEHIND = float(TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)  # s


def key_status(
    superlink: str, ca_certificate: bytes, key: ec.EllipticCurvePrivateKey | None
) -> KeyStatus:
    """Ask for an activation that the SuperLink must refuse, and see for what reason.

    The call asks for a heartbeat every 0 s, which no SuperLink allows. Flower checks the
    signature first, then looks the key up, then refuses the interval, all before it changes
    the node's state: whether the node runs is not touched, and not found out.

    Parameters
    ----------
    superlink : str
        host:port.
    ca_certificate : bytes
        PEM; the server is spoken to only if its certificate comes from here.
    key : EllipticCurvePrivateKey or None
        Signs the call; None sends it unsigned, which every SuperLink refuses.

    Returns
    -------
    {"registered", "unregistered", "refused", "unavailable", "foreign"}
        "refused": no signature, or one whose time is too far off; "unavailable": a gateway
        answers for a SuperLink that does not run; "foreign": this is not Flower's Fleet API.

    Raises
    ------
    FederationError
        When there is no connection or no answer.
    """
    public = b"" if key is None else public_key_to_bytes(key.public_key())
    signing = [] if key is None else [NodeAuthHttpInterceptor(key, key.public_key())]
    request = ActivateNodeRequest(public_key=public, heartbeat_interval=0.0)
    try:
        with FleetHttpClient.from_server_address(
            superlink, insecure=False, root_certificates=ca_certificate, interceptors=signing
        ) as client:
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return _status(error.response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FederationError(f"{superlink} gives no answer ({error}).") from error
    except ValueError:  # an answer, but not Flower's
        return "foreign"
    return "foreign"


def _status(response: httpx.Response) -> KeyStatus:
    reason = FlowerError.from_json(response.text)
    if reason is not None and reason.code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return "registered"
    if reason is not None and reason.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return "unregistered"
    # Flower's text tells its own refusal from a gateway's. Delete when the answer has a code.
    if response.status_code == httpx.codes.UNAUTHORIZED and "SuperNode" in response.text:
        return "refused"
    if response.status_code in (502, 503, 504):
        return "unavailable"
    return "foreign"
