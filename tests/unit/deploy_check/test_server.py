"""``deploy check``: name, port, clock, program and registration, against real sockets."""

import socket
from pathlib import Path

import pytest

from pluralllm_fl.deploy.check_folder import Address, check_key
from pluralllm_fl.deploy.check_server import (
    check_clock,
    check_exposure,
    check_name,
    check_port,
    check_program,
    check_registration,
)
from tests import tls
from tests.ports import free_port
from tests.tls import DAY, NOW, Signed
from tests.unit.deploy_check.node_folder import TIMEOUT, UNSIGNED, at, the


@pytest.mark.parametrize(
    ("server_ahead", "status", "message"),
    [
        (0.0, "ok", "agrees with the server's"),
        (-12.0, "wrong", " s ahead of the server's; it may be 5 s ahead to 305 s behind"),
        (320.0, "wrong", " s behind the server's"),
        (200.0, "warning", " s behind the server's"),
        (None, "skipped", "does not tell its time"),
    ],
)
def test_clock(
    tmp_path: Path, ca: Signed, server_ahead: float | None, status: str, message: str
) -> None:
    # The certificate is of no importance here: a wrong clock may be why it seems invalid.
    shown = tls.server(ca, "elsewhere", begins=NOW - 9 * DAY, ends=NOW - DAY)
    with tls.listening(tmp_path, shown, ahead=server_ahead) as port:
        finding = the(check_clock(at(port), TIMEOUT))
    assert finding.status == status
    assert message in finding.message


def test_ports() -> None:
    assert "refuses connections" in the(check_port(at(free_port()), TIMEOUT)).message
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for client in waiting:  # the queue is full: further connections are not answered
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        assert "does not answer within 0.3 s" in the(check_port(at(port), 0.3)).message
        for client in waiting:
            client.close()


def test_names() -> None:
    assert the(check_name(Address("localhost", 1), TIMEOUT)).status == "ok"
    for name in ("absent.invalid", "a..b", "x" * 70):
        finding = the(check_name(Address(name, 1), TIMEOUT))
        assert (finding.status, finding.step) == ("wrong", "Name")
        assert f"'{name}' cannot be resolved" in finding.message


@pytest.mark.parametrize(
    ("status", "body", "program", "registration"),
    [
        ("401 Unauthorized", UNSIGNED, "ok", "wrong"),
        ("401 Unauthorized", b"password please", "wrong", "skipped"),
        ("502 Bad Gateway", b"<html>", "wrong", "skipped"),
        ("404 Not Found", b"{}", "wrong", "skipped"),
        ("200 OK", b"<html>welcome", "wrong", "skipped"),
        ("200 OK", b"", "wrong", "skipped"),
        ("412 Precondition Failed", b'{"code":2003,"detail":""}', "wrong", "ok"),
        ("412 Precondition Failed", b'{"code":2004,"detail":""}', "wrong", "wrong"),
    ],
)
def test_answers_to_the_fleet_call(
    tmp_path: Path,
    node: Path,
    ca: Signed,
    status: str,
    body: bytes,
    program: str,
    registration: str,
) -> None:
    key, _ = check_key(node)
    assert key is not None
    with tls.listening(tmp_path, tls.server(ca, "127.0.0.1"), status=status, body=body) as port:
        assert the(check_program(at(port), ca.pem)).status == program
        assert the(check_registration(at(port), ca.pem, key)).status == registration


def test_no_answer_to_the_fleet_call(node: Path, ca: Signed) -> None:
    key, _ = check_key(node)
    assert key is not None
    closed = at(free_port())
    assert "gives no answer" in the(check_program(closed, ca.pem)).message
    assert "gives no answer" in the(check_registration(closed, ca.pem, key)).message


def test_an_open_control_api_is_warned_of(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(ca, "127.0.0.1")
    with tls.listening(tmp_path, shown, status="405 Method Not Allowed") as port:
        assert the(check_exposure(at(port), ca.pem, TIMEOUT)).status == "warning"
    with tls.listening(tmp_path, shown, status="404 Not Found") as port:
        assert check_exposure(at(port), ca.pem, TIMEOUT) == []
