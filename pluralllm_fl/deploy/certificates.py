"""The federation's own certificate authority, the server's certificate, the nodes' key pairs.

Elliptic curves only: P-384 for the authority and the nodes (the curve that Flower asks for),
P-256 for the server, whose key takes part in every handshake.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pluralllm_fl.errors import ArtefactError

AUTHORITY_YEARS = 10
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Clocks differ: a certificate must be valid on a machine that is a little behind.
_BACKDATED = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """A private certificate authority: it signs the server's certificate and nothing else."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, years: int) -> Self:
        """Make a new one, valid ten years or as long as its first certificate."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = _name("PluralLLM-FL federation authority")
        until = datetime.now(UTC) + timedelta(days=365 * max(years, AUTHORITY_YEARS))
        builder = (
            _builder(name, name, key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA384()), key)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ca.crt and ca.key.

        Raises
        ------
        ArtefactError
            If one is missing or damaged.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except FileNotFoundError as error:
            raise ArtefactError(
                f"{error.filename} is missing. Bring the authority's folder back for this step."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise ArtefactError(f"The authority in {folder} cannot be read: {error}.") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ArtefactError(f"{folder / 'ca.key'} is not the authority's key.")
        return cls(certificate, key)

    def issue(
        self, hosts: Sequence[str], public_key: ec.EllipticCurvePublicKey, years: int
    ) -> x509.Certificate:
        """Sign a server certificate for these hosts and this machine itself."""
        until = datetime.now(UTC) + timedelta(days=365 * years)
        authority = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        builder = (
            _builder(
                _name(hosts[0]),
                self.certificate.subject,
                public_key,
                min(until, self.certificate.not_valid_after_utc),
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_alternative_names([*hosts, *LOOPBACK]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority.value),
                critical=False,
            )
        )
        return builder.sign(self.key, hashes.SHA384())


def server_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key for the server."""
    return ec.generate_private_key(ec.SECP256R1())


def node_keys(comment: str) -> tuple[bytes, bytes]:
    """Return a node's private and public key in OpenSSH's format, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + f" {comment}\n".encode()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: file modes protect it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for, in order."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common: str) -> x509.Name:
    # The standard allows 64 characters here; clients look at the alternative names alone.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _alternative_names(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
