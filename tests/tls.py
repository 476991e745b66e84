"""Certificates good and bad, and a small TLS server that shows them."""

import contextlib
import datetime
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Time = datetime.datetime


@dataclass(frozen=True)
class Signed:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority(name: str = "Test authority", ends: datetime.datetime = NOW + 900 * DAY) -> Signed:
    return _sign(name, None, NOW - 900 * DAY, ends, x509.BasicConstraints(True, 0))


def server(
    ca: Signed,
    *hosts: str,
    begins: datetime.datetime = NOW - DAY,
    ends: datetime.datetime = NOW + 300 * DAY,
) -> Signed:
    """Return a certificate for these DNS names and IP addresses."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return _sign("server", ca, begins, ends, x509.SubjectAlternativeName(names))


def _sign(
    common: str,
    ca: Signed | None,
    begins: datetime.datetime,
    ends: datetime.datetime,
    extension: x509.ExtensionType,
) -> Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if ca is None else ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(extension, critical=ca is None)
    )
    return Signed(builder.sign(key if ca is None else ca.key, hashes.SHA256()), key)


@contextlib.contextmanager
def listening(
    folder: Path,
    certificate: Signed | None,
    *,
    status: str = "404 Not Found",
    ahead: float | None = 0.0,
    body: bytes = b"",
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> Iterator[int]:
    """Answer every HTTP request alike; yield the port.

    Parameters
    ----------
    folder : Path
        For the certificate's files.
    certificate : Signed or None
        None: plain HTTP.
    status : str
    ahead : float or None
        Seconds that the Date header lies before the clock; None: no Date header.
    body : bytes
    newest : ssl.TLSVersion
        That the server speaks.
    """
    context = None
    if certificate is not None:
        chain = folder / "chain.pem"
        chain.write_bytes(certificate.pem + certificate.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        context.maximum_version = newest

    def answer(raw: socket.socket) -> None:
        raw.settimeout(5)
        with contextlib.suppress(OSError), raw:
            stream = raw if context is None else context.wrap_socket(raw, server_side=True)
            with stream:
                _take_request(stream)
                lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
                if ahead is not None:
                    date = datetime.datetime.now(datetime.UTC).timestamp() + ahead
                    lines.append(f"Date: {formatdate(date, usegmt=True)}")
                stream.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    with serving(answer) as port:
        yield port


def _take_request(stream: socket.socket) -> None:
    """Read all of it: closing a socket with unread bytes resets the connection."""
    request = b""
    while b"\r\n\r\n" not in request:
        if not (part := stream.recv(65536)):
            raise ConnectionError
        request += part
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        missing -= len(stream.recv(missing)) or missing


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Give every connection to `answer`, one after the other; yield the port."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def loop() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    answer(listener.accept()[0])

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            thread.join()
