"""The server's certificate: whose it is, for which names, and until when."""

import datetime
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pluralllm_fl.deploy.certificates import hosts_of
from pluralllm_fl.deploy.check_folder import Address
from pluralllm_fl.deploy.findings import Finding

SOON = datetime.timedelta(days=30)
_STEP = "Certificate"
_TELL = "Tell the operator."
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which ssl does not name
_PLAIN = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE")


def read_ca(folder: Path) -> tuple[bytes | None, list[Finding]]:
    """Read ca.crt, the one authority whose certificate the server may show."""
    path, again = folder / "ca.crt", "Ask the operator for ca.crt again."
    try:
        content = path.read_bytes()
        x509.load_pem_x509_certificates(content)
        trusting(content)
    except OSError as error:
        message = f"{path} cannot be used: {error.strerror}."
        return None, [Finding("CA", "wrong", message, again)]
    except ValueError:
        return None, [Finding("CA", "wrong", "ca.crt is damaged, or no certificate.", again)]
    return content, []


def trusting(
    authority: bytes | str, *, names: bool = True, dates: bool = True, leaf: bool = False
) -> ssl.SSLContext:
    """Return a context like that of Flower's client.

    Parameters
    ----------
    authority : bytes or str
        PEM (bytes or text) of the certificates to trust.
    names, dates : bool
        Whether names and dates count.
    leaf : bool
        Trust these certificates themselves, whoever signed them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    text = authority.decode("ascii") if isinstance(authority, bytes) else authority
    context.load_verify_locations(cadata=text)
    context.check_hostname = names
    if not dates:
        context.verify_flags |= _NO_CHECK_TIME
    if leaf:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def check_certificate(address: Address, ca: bytes, timeout: float) -> list[Finding]:
    """Shake hands as the node will; if that fails, find out everything that is wrong.

    Parameters
    ----------
    address : Address
    ca : bytes
        PEM of the authority, valid.
    timeout : float
        For every connection, in seconds.
    """
    try:
        shown = _shown(address, timeout)
    except OSError as error:
        return [_no_tls(address, error, timeout)]
    except ValueError:
        return [Finding(_STEP, "wrong", "The server's certificate cannot be read.", _TELL)]
    failure = _handshake(address, trusting(ca), timeout)
    authorities = x509.load_pem_x509_certificates(ca)
    if not failure:
        return [_lasting(shown, authorities)]
    findings = [*_authority(address, ca, shown, timeout), *_dates(shown, authorities)]
    findings += _names(address, shown, timeout)
    if findings:
        return findings
    return [Finding(_STEP, "wrong", f"The server's certificate is refused: {failure}.", _TELL)]


def _handshake(address: Address, context: ssl.SSLContext, timeout: float) -> str:
    """Return why the handshake fails; empty when it works."""
    try:
        with (
            socket.create_connection((address.host, address.port), timeout) as raw,
            context.wrap_socket(raw, server_hostname=address.host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except OSError as error:
        return error.strerror or type(error).__name__


def _shown(address: Address, timeout: float) -> x509.Certificate:
    """Return the certificate that the server shows, whether or not it can be trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # to explain what is wrong; nothing is sent
    with (
        socket.create_connection((address.host, address.port), timeout) as raw,
        context.wrap_socket(raw, server_hostname=address.host) as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def _no_tls(address: Address, error: OSError, timeout: float) -> Finding:
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        message = f"The server refuses the TLS handshake ({error.reason})."
        return Finding(_STEP, "wrong", message, _TELL)
    if _answers_plainly(address, timeout):
        message = f"The server at {address} speaks plain HTTP, not TLS."
        remedy = "Connect to no such server: the operator must start it with its certificate."
        return Finding(_STEP, "wrong", message, remedy)
    if isinstance(error, ssl.SSLError) and error.reason in _PLAIN:
        message = f"What answers at {address} does not speak TLS: it is another program."
        remedy = "Check SUPERLINK in node.env, the port above all, with the operator."
        return Finding(_STEP, "wrong", message, remedy)
    message = f"{address} accepts connections but breaks them off or stays silent."
    remedy = "A firewall or proxy on the way may do that; otherwise tell the operator."
    return Finding(_STEP, "wrong", message, remedy)


def _answers_plainly(address: Address, timeout: float) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout) as raw:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return raw.recv(5) == b"HTTP/"
    except OSError:
        return False


def _authority(
    address: Address, ca: bytes, shown: x509.Certificate, timeout: float
) -> list[Finding]:
    if not _handshake(address, trusting(ca, names=False, dates=False), timeout):
        return []
    issuer = shown.issuer.rfc4514_string()
    message = f"The server's certificate is not from the authority of ca.crt but from '{issuer}'."
    remedy = (
        "Connect to no such server. Ask the operator, by another way, whether ca.crt was "
        "renewed; if not, someone may be listening in (some company proxies do)."
    )
    return [Finding(_STEP, "wrong", message, remedy)]


def _dates(shown: x509.Certificate, authorities: list[x509.Certificate]) -> list[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    remedy = "If this machine's clock is right, the operator must renew the certificate."
    findings = []
    for who, certificate in [("The server's", shown), *(("The CA's", ca) for ca in authorities)]:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if begins <= now <= ends:
            continue
        state = "is not yet valid" if now < begins else "has expired"
        message = (
            f"{who} certificate {state}: it runs from {_when(begins)} to {_when(ends)}, and this "
            f"machine's clock says {_when(now)}."
        )
        findings.append(Finding(_STEP, "wrong", message, remedy))
    return findings


def _names(address: Address, shown: x509.Certificate, timeout: float) -> list[Finding]:
    itself = ssl.DER_cert_to_PEM_cert(shown.public_bytes(Encoding.DER))
    if not _handshake(address, trusting(itself, dates=False, leaf=True), timeout):
        return []
    try:
        names = ", ".join(hosts_of(shown))
    except x509.ExtensionNotFound:
        names = "no name"
    message = f"The server's certificate is for {names}; not for '{address.host}'."
    remedy = "Use one of those in SUPERLINK in node.env, or ask the operator to add this one."
    return [Finding(_STEP, "wrong", message, remedy)]


def _lasting(shown: x509.Certificate, authorities: list[x509.Certificate]) -> Finding:
    ends = min(certificate.not_valid_after_utc for certificate in (shown, *authorities))
    left = ends - datetime.datetime.now(datetime.UTC)
    if left < SOON:
        message = f"The server's certificate is right, but ends in {left.days} days, {_when(ends)}."
        return Finding(_STEP, "warning", message, "Remind the operator to renew it.")
    return Finding(_STEP, "ok", f"The server's certificate is right and lasts to {_when(ends)}.")


def _when(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
