"""The way to the server: name, port, clock, Fleet API and registration."""

import contextlib
import email.utils
import errno
import http.client
import socket
import ssl
import time
import urllib.request

from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm_fl.deploy.check_folder import Address, fingerprint
from pluralllm_fl.deploy.check_tls import trusting
from pluralllm_fl.deploy.findings import Finding
from pluralllm_fl.errors import FederationError

_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_CLOCK_RESOLUTION = 2.0  # s; the server's Date has whole seconds and may be a second old


def through_proxy(address: Address) -> bool:
    """Whether Flower's client will go through a proxy that the environment names."""
    named = {"https", "all"} & set(urllib.request.getproxies())
    return bool(named) and not urllib.request.proxy_bypass(address.host)


def check_name(address: Address, _timeout: float) -> list[Finding]:
    """Check that the server's name has an IP address."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a valid name"
        message = f"'{address.host}' cannot be resolved to an IP address ({reason})."
        remedy = (
            "Check the spelling of SUPERLINK in node.env, this machine's network, and with the "
            "operator that the name exists."
        )
        return [Finding("Name", "wrong", message, remedy)]
    addresses = ", ".join(dict.fromkeys(str(entry[4][0]) for entry in found))
    return [Finding("Name", "ok", f"{address.host} is {addresses}.")]


def check_port(address: Address, timeout: float) -> list[Finding]:
    """Check that a TCP connection can be made."""
    try:
        socket.create_connection((address.host, address.port), timeout).close()
    except ConnectionRefusedError:
        message = f"{address} refuses connections: nothing listens there, or a firewall rejects."
        remedy = "Ask the operator whether the server runs, and on which port."
    except TimeoutError:
        message = f"{address} does not answer within {timeout:g} s: packets are dropped."
        remedy = (
            f"Let this machine's network open connections to TCP port {address.port}, and the "
            "server's firewall accept them."
        )
    except OSError as error:
        if error.errno in _NO_ROUTE:
            message = f"There is no route to {address} from this machine."
            remedy = "Check this machine's network connection and VPN."
        else:
            message = f"{address} cannot be connected to: {error.strerror or error}."
            remedy = "Check this machine's network connection."
    else:
        return [Finding("Port", "ok", f"{address} accepts connections.")]
    return [Finding("Port", "wrong", message, remedy)]


def check_clock(address: Address, timeout: float) -> list[Finding]:
    """Check that the server will take this machine's signed timestamps."""
    from pluralllm_fl.processes.fleet import MOST_AHEAD, MOST_BEHIND

    step = "Clock"
    try:
        skew = _clock_skew(address, timeout)
    except (OSError, http.client.HTTPException, ValueError):
        return [Finding(step, "skipped", "The server's time could not be asked for.")]
    if skew is None:
        return [Finding(step, "skipped", "The server does not tell its time.")]
    side = "ahead of" if skew > 0 else "behind"
    found = f"This machine's clock is about {abs(skew):.0f} s {side} the server's"
    if abs(skew) < _CLOCK_RESOLUTION:
        found = "This machine's clock agrees with the server's"
    message = f"{found}; it may be {MOST_AHEAD:g} s ahead to {MOST_BEHIND:g} s behind."
    remedy = "Set the clocks of both machines by NTP (e.g. `timedatectl set-ntp true`)."
    slack = _CLOCK_RESOLUTION / 2
    if not -MOST_BEHIND - slack < skew < MOST_AHEAD + slack:
        return [Finding(step, "wrong", message, remedy)]
    if not -MOST_BEHIND / 2 < skew < MOST_AHEAD / 2:
        return [Finding(step, "warning", message, remedy)]
    return [Finding(step, "ok", message)]


def _clock_skew(address: Address, timeout: float) -> float | None:
    """Seconds that this clock is ahead of the server's Date header; None without one."""
    # Unverified on purpose: nothing is sent or trusted, and a wrong clock can be the very
    # reason why the certificate seems invalid.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=timeout, context=context
    )
    with contextlib.closing(connection):
        connection.connect()
        before = time.time()
        connection.request("GET", "/v1/fleet/activate-node")
        date = connection.getresponse().getheader("Date")
        local = (before + time.time()) / 2
    if date is None:
        return None
    return local - (email.utils.parsedate_to_datetime(date).timestamp() + _CLOCK_RESOLUTION / 2)


def check_program(address: Address, ca: bytes) -> list[Finding]:
    """Check that it is Flower's Fleet API that answers."""
    from pluralllm_fl.processes.fleet import key_status

    step, ask = "Program", "Tell the operator."
    try:
        status = key_status(str(address), ca, None)
    except FederationError as error:
        return [Finding(step, "wrong", str(error), ask)]
    if status == "refused":
        return [Finding(step, "ok", "A Flower SuperLink answers, and refuses unsigned calls.")]
    if status == "unavailable":
        message = "The gateway answers, but the SuperLink behind it does not run."
        return [Finding(step, "wrong", message, ask)]
    message = f"What answers at {address} is not the Fleet API of a Flower SuperLink."
    remedy = "Check SUPERLINK in node.env, the port above all, with the operator."
    return [Finding(step, "wrong", message, remedy)]


def check_registration(
    address: Address, ca: bytes, key: ec.EllipticCurvePrivateKey
) -> list[Finding]:
    """Check that the server knows this node's key."""
    from pluralllm_fl.processes.fleet import key_status

    step = "Registration"
    try:
        status = key_status(str(address), ca, key)
    except FederationError as error:
        return [Finding(step, "wrong", str(error), "Try again; then tell the operator.")]
    if status == "registered":
        message = "The server knows this node's key (not tested: whether the node runs now)."
        return [Finding(step, "ok", message)]
    if status == "unregistered":
        message = f"The server does not know this node's key ({fingerprint(key)})."
        remedy = "Ask the operator to register this folder's node.pub with the server."
        return [Finding(step, "wrong", message, remedy)]
    if status == "refused":
        message = "The server refuses this node's signature; most likely the clocks differ."
        remedy = "Set the clocks of both machines by NTP."
        return [Finding(step, "wrong", message, remedy)]
    return [Finding(step, "skipped", "No SuperLink to ask.")]


def check_exposure(address: Address, ca: bytes, timeout: float) -> list[Finding]:
    """Warn when the port also lets the Control API be reached, which starts code on nodes."""
    connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=timeout, context=trusting(ca)
    )
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/v1/control/list-runs")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return []
    if status != http.client.METHOD_NOT_ALLOWED:  # Flower's answer to GET where POST would work
        return []
    message = "The server's Control API can be reached too: whoever does can run code on nodes."
    remedy = "Ask the operator to let only /v1/fleet/ through (the gateway does)."
    return [Finding("Exposure", "warning", message, remedy)]
