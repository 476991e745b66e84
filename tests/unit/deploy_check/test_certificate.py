"""``deploy check``: the server's certificate, against servers that show good and bad ones."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from pluralllm_fl.deploy.check_tls import check_certificate, read_ca
from pluralllm_fl.deploy.findings import Finding
from tests import tls
from tests.tls import DAY, NOW, Signed
from tests.unit.deploy_check.node_folder import TIMEOUT, at, statuses, the


def certificate_findings(tmp_path: Path, ca: Signed, shown: Signed | None) -> list[Finding]:
    with tls.listening(tmp_path, shown) as port:
        return check_certificate(at(port), ca.pem, TIMEOUT)


def test_a_good_certificate(tmp_path: Path, ca: Signed) -> None:
    finding = the(certificate_findings(tmp_path, ca, tls.server(ca, "127.0.0.1")))
    assert finding.status == "ok"
    assert f"{NOW + 300 * DAY:%Y-%m-%d}" in finding.message


def test_a_certificate_that_ends_soon(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(ca, "127.0.0.1", ends=NOW + 20 * DAY)
    finding = the(certificate_findings(tmp_path, ca, shown))
    assert finding.status == "warning"
    assert "ends in 19 days" in finding.message


def test_a_certificate_of_another_authority(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(tls.authority("Somebody else"), "127.0.0.1")
    finding = the(certificate_findings(tmp_path, ca, shown))
    assert finding.status == "wrong"
    assert "not from the authority of ca.crt but from 'CN=Somebody else'" in finding.message


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [(NOW - 9 * DAY, NOW - DAY, "has expired"), (NOW + DAY, NOW + 9 * DAY, "is not yet valid")],
)
def test_a_certificate_outside_its_dates(
    tmp_path: Path, ca: Signed, begins: tls.Time, ends: tls.Time, message: str
) -> None:
    shown = tls.server(ca, "127.0.0.1", begins=begins, ends=ends)
    finding = the(certificate_findings(tmp_path, ca, shown))
    assert finding.status == "wrong"
    assert message in finding.message
    for date in (begins, ends, NOW):  # the last: this machine's clock
        assert f"{date:%Y-%m-%d}" in finding.message


def test_an_expired_authority(tmp_path: Path) -> None:
    old = tls.authority(ends=NOW - DAY)
    finding = the(certificate_findings(tmp_path, old, tls.server(old, "127.0.0.1")))
    assert "The CA's certificate has expired" in finding.message


def test_a_certificate_for_other_names(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(ca, "fed.example", "192.0.2.7")
    finding = the(certificate_findings(tmp_path, ca, shown))
    assert finding.status == "wrong"
    assert "is for fed.example, 192.0.2.7; not for '127.0.0.1'" in finding.message


def test_everything_wrong_with_a_certificate_is_named_at_once(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(tls.authority("X"), "fed.example", begins=NOW - 9 * DAY, ends=NOW - DAY)
    findings = certificate_findings(tmp_path, ca, shown)
    assert statuses(findings) == ["wrong"] * 3


def test_servers_that_speak_no_tls(tmp_path: Path, ca: Signed) -> None:
    finding = the(certificate_findings(tmp_path, ca, None))
    assert "speaks plain HTTP, not TLS" in finding.message

    def greet(raw: socket.socket) -> None:
        with raw:
            raw.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            raw.recv(9999)

    def hang_up(raw: socket.socket) -> None:
        raw.close()

    cases: dict[Callable[[socket.socket], None], str] = {
        greet: "does not speak TLS",
        hang_up: "breaks them off",
    }
    for answer, message in cases.items():
        with tls.serving(answer) as port:
            finding = the(check_certificate(at(port), ca.pem, TIMEOUT))
        assert finding.status == "wrong"
        assert message in finding.message
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = the(check_certificate(at(silent.getsockname()[1]), ca.pem, 0.3))
    assert "stays silent" in finding.message


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_server_with_old_tls_only(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(ca, "127.0.0.1")
    with tls.listening(tmp_path, shown, newest=ssl.TLSVersion.TLSv1) as port:
        finding = the(check_certificate(at(port), ca.pem, TIMEOUT))
    assert "refuses the TLS handshake" in finding.message


def test_the_authority_of_the_folder(node: Path) -> None:
    content, findings = read_ca(node)
    assert content == (node / "ca.crt").read_bytes()
    assert findings == []
    for damaged in (
        b"",
        b"\xff",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ):
        (node / "ca.crt").write_bytes(damaged)
        content, findings = read_ca(node)
        assert content is None
        assert the(findings).status == "wrong"
    (node / "ca.crt").unlink()
    assert "No such file" in the(read_ca(node)[1]).message
