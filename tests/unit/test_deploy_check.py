"""``deploy check``: what a node's engineer is told, against real files, sockets and shells."""

import json
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.deploy import check_folder
from pluralllm_fl.deploy.check import check_node
from pluralllm_fl.deploy.check_data import check_data, check_embedding
from pluralllm_fl.deploy.check_folder import (
    Address,
    check_key,
    check_programs,
    check_room,
    fingerprint,
    parse_settings,
    read_settings,
)
from pluralllm_fl.deploy.check_server import (
    check_clock,
    check_exposure,
    check_name,
    check_port,
    check_program,
    check_registration,
)
from pluralllm_fl.deploy.check_tls import check_certificate, read_ca
from pluralllm_fl.deploy.findings import Finding
from pluralllm_fl.deploy.layout import create
from pluralllm_fl.preferences import GroupPreferences, PreferenceDataset, Question
from tests import tls
from tests.tls import DAY, NOW, Signed

TIMEOUT = 2.0
UNSIGNED = b'{"detail":"Invalid SuperNode authentication"}'  # Flower's answer


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return a node's folder, as the operator hands it over."""
    create(tmp_path / "fed", seen="Northland", unseen="", servers="localhost", port=8443, years=1)
    return tmp_path / "fed" / "nodes" / "northland"


@pytest.fixture(scope="module")
def ca() -> Signed:
    return tls.authority()


def statuses(findings: Sequence[Finding]) -> list[str]:
    return [finding.status for finding in findings]


def the(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    return finding


# -- folder


def edit(node: Path, old: str, new: str) -> None:
    path = node / "node.env"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_fresh_folder_is_whole(node: Path) -> None:
    found, findings = read_settings(node)
    assert statuses(findings) == ["ok"]
    assert (found["GROUP"], found["ROLE"], found["SUPERLINK"]) == (
        "Northland", "train", "localhost:8443",
    )  # fmt: skip
    key, findings = check_key(node)
    assert statuses(findings) == ["ok"]
    assert key is not None
    assert statuses(check_room(node)) == ["ok"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ROLE=train", "ROLE=trian", "ROLE=trian: must be train or evaluate"),
        ("ROLE=train", "ROLE=", "ROLE is empty"),
        ("GROUP=Northland", "", "GROUP is missing"),
        ("GROUP=Northland", "GRUOP=Northland", "GROUP is missing. Did you mean 'GRUOP'?"),
        ("GROUP=Northland", "GROUP=North land", "the value of GROUP holds spaces"),
        ("GROUP=Northland", "GROUP='North;land'", "has no ';'"),
        ("GROUP=Northland", "GROUP='Northland '", "no spaces at its ends"),
        ("GROUP=Northland", "GROUP = Northland", "without spaces around '='"),
        ("GROUP=Northland", "GROUP='Northland", "a quotation mark is not closed"),
        ("GROUP=Northland", "GROUP=A\nGROUP=B", "GROUP is set a second time"),
        ("answers.jsonl", "$HOME/a.jsonl", "the value of DATASET_PATH holds $"),
        ("answers.jsonl", "~/a.jsonl", "the value of DATASET_PATH holds $, ` or ~"),
        ("answers.jsonl", '"`touch hacked`"', "the value of DATASET_PATH holds $"),
        ("localhost:8443", "https://localhost:8443", "write host:port alone"),
        ("localhost:8443", "localhost", "does not end in a port"),
        ("localhost:8443", "localhost:70000", "ports go from 1 to 65535"),
        ("localhost:8443", "::1:8443", "IPv6 goes in [brackets]"),
        ("localhost:8443", "localhost/fleet:8443", "no host name"),
        ("\n", "\r\n", "Windows line ends"),
        ("# Settings", "\ufeff# Settings", "byte-order mark"),
    ],
)
def test_mistakes_in_the_settings_are_named(node: Path, old: str, new: str, message: str) -> None:
    edit(node, old, new)
    found, findings = read_settings(node)
    finding = the(findings)
    assert finding.status == "wrong"
    assert message in finding.message
    assert finding.remedy
    assert not (node / "hacked").exists()
    assert "7000" not in found.get("SUPERLINK", "")


def test_every_mistake_is_named_at_once(node: Path) -> None:
    edit(node, "ROLE=train", "ROLE=x")
    edit(node, "localhost:8443", "localhost")
    edit(node, "GROUP=Northland", "GROUP=")
    assert statuses(read_settings(node)[1]) == ["wrong"] * 3


def shell_value(line: str) -> str:
    script = f"{line}\nprintf '%s' \"$GROUP\""
    return subprocess.run(
        ["sh", "-c", script], env={}, capture_output=True, text=True, check=True
    ).stdout


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("'\"$\\# ")))
def test_quoted_values_are_read_as_a_shell_reads_them(value: str) -> None:
    line = f"GROUP={shlex.quote(value)}"
    assert parse_settings(line) == ({"GROUP": value}, [])
    assert shell_value(line) == value


@pytest.mark.parametrize(
    "line",
    [
        'GROUP="North Land"  # the usual name, isn\'t it for $5',
        "export GROUP=North-Land",
        "  GROUP=a#b",
        "GROUP='a\"b'",
        'GROUP="it\'s"',
        "GROUP=a\\ b",
        "GROUP=North'l a'nd",
        "GROUP='$x'\"'\"'`y`'",
        "GROUP=",
    ],
)
def test_plain_shell_syntax_is_read_as_a_shell_reads_it(line: str) -> None:
    assert parse_settings(line) == ({"GROUP": shell_value(line)}, [])


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("example.org:8443", ("example.org", 8443)),
        ("192.0.2.7:1", ("192.0.2.7", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    found = Address.parse(address)
    assert (found.host, found.port) == parts
    assert str(found) == address


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o700])
def test_a_key_that_others_reach_is_wrong(node: Path, mode: int) -> None:
    (node / "node.key").chmod(mode)
    key, findings = check_key(node)
    assert key is not None
    finding = the(findings)
    assert (finding.status, finding.remedy) == ("wrong", f"chmod 600 {node}/node.key")
    assert f"{mode:04o}" in finding.message


def openssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def test_unusable_keys_are_wrong(node: Path) -> None:
    another = ec.generate_private_key(ec.SECP384R1())
    for content in (
        b"", b"not a key", (node / "node.key").read_bytes()[:200],
        openssh(ed25519.Ed25519PrivateKey.generate()), tls.authority().key_pem,
    ):  # fmt: skip
        (node / "node.key").write_bytes(content)
        key, findings = check_key(node)
        assert key is None
        assert "is damaged, or no OpenSSH private key" in the(findings).message
    (node / "node.key").write_bytes(openssh(another))
    assert "different pairs" in the(check_key(node)[1]).message
    (node / "node.pub").write_text("ecdsa-sha2-nistp384 AAAA")
    assert "node.pub is damaged" in the(check_key(node)[1]).message
    (node / "node.key").unlink()
    assert "There is no" in the(check_key(node)[1]).message


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_keys_as_ssh_keygen_makes_and_shows_them(node: Path) -> None:
    def ssh_keygen(*arguments: str | Path) -> str:
        return subprocess.run(
            ["ssh-keygen", *arguments], capture_output=True, text=True, check=True
        ).stdout

    for passphrase in ("", "secret"):
        for name in ("node.key", "node.key.pub"):
            (node / name).unlink(missing_ok=True)
        ssh_keygen("-q", "-t", "ecdsa", "-b", "384", "-N", passphrase, "-f", node / "node.key")
        (node / "node.key.pub").replace(node / "node.pub")
        key, findings = check_key(node)
        assert statuses(findings) == ["wrong" if passphrase else "ok"]
        assert key is None or fingerprint(key) in ssh_keygen("-lf", node / "node.pub")


def test_room(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node.chmod(0o750)
    assert f"chmod -R go= {node}" in the(check_room(node)).remedy
    monkeypatch.setattr(check_folder, "LITTLE_ROOM", 10**30)
    assert statuses(check_room(node)) == ["warning", "warning"]
    (node / "state").rmdir()
    (node / "state").touch()
    assert "cannot be written" in the(check_room(node)).message


def test_flower_is_looked_for_where_the_scripts_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "not in PATH" in the(check_programs({})).message
    (tmp_path / "bin").mkdir()
    settings = {"VENV": str(tmp_path)}
    assert f"neither in {tmp_path}/bin" in the(check_programs(settings)).message
    (tmp_path / "bin" / "flower-supernode").touch(mode=0o700)
    assert the(check_programs(settings)).status == "ok"


# -- data

SECRET = "Zyxwv"  # stands for everything that must not leave the machine


def row(i: int, group: str = "Northland", **values: object) -> dict[str, object]:
    return {
        "group": group,
        "question": f"{SECRET} {i}?",
        "options": [f"{SECRET} yes", f"{SECRET} no"],
        "distribution": [0.123, 0.877],
    } | values


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_good_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i) for i in range(21)])
    dataset, findings = check_data(path, "Northland")
    assert dataset is not None
    assert statuses(findings) == ["ok", "ok"]
    assert "holds 21 question(s) of 'Northland'" in findings[1].message


def test_too_few_questions_and_other_groups(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)] + [row(1, "Southland"), row(1, "Eastland")]
    _, findings = check_data(write(tmp_path / "a.jsonl", rows), "Northland")
    assert statuses(findings) == ["ok", "wrong", "warning"]
    assert "context-questions = 20 needs 21 or more" in findings[1].message
    assert "also holds 2 other group(s)" in findings[2].message


def test_the_group_is_not_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i, f"NORTHLAND{SECRET}") for i in range(30)])
    _, findings = check_data(path, "Northland")
    assert "None of the file's 1 group(s) is 'Northland'." in findings[1].message
    assert SECRET not in str(findings)
    _, findings = check_data(path, f"northland{SECRET}")
    assert "only in capital letters" in findings[1].message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(2, distribution=[0.5, 0.9])], "do not sum to 1 (line 2)"),
        ([row(1), row(2, distribution=[0.5, SECRET])], "other than numbers (line 2)"),
        ([row(1, options=[SECRET, SECRET])], "duplicate options (line 1)"),
        ([row(1, distribution=None, choice=SECRET)], "choice is none of the options (line 1)"),
        ([row(1), row(1, distribution=[0.2, 0.8])], "conflicting answers of one group"),
        ([row(1, f"a;{SECRET}")], "';' in a group name (line 1)"),
        ([row(1, options=SECRET)], "'options' is not a list (line 1)"),
        ([{f"questoin {SECRET}": 1, "group": "x"}], "no question column (line 1)"),
        (
            [row(i, distribution=[0, 0]) for i in range(9)],
            "all probabilities are zero (lines 1, 2, 3, 4, 5 and 4 more)",
        ),
    ],
)
def test_bad_rows_are_named_by_line_and_never_quoted(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    dataset, findings = check_data(write(tmp_path / "a.jsonl", rows), "Northland")
    assert dataset is None
    finding = the(findings)
    assert finding.status == "wrong"
    assert message in finding.message
    assert "pluralllm data check" in finding.remedy
    assert SECRET not in str(finding)
    assert "0.9" not in str(finding)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", f'{{"group": {SECRET}'.encode()),
        ("a.jsonl", f'["{SECRET}"]'.encode()),
        ("a.csv", f"{SECRET},{SECRET}\n1,2\n".encode()),
        ("a.csv", b"group,question\n" + f'{SECRET},"x" {SECRET}\n'.encode()),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.parquet", f"PAR1{SECRET}PAR1".encode()),
        ("a.txt", SECRET.encode()),
    ],
)
def test_damaged_files_are_wrong_and_never_quoted(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    dataset, findings = check_data(tmp_path / name, "Northland")
    assert dataset is None
    assert the(findings).status == "wrong"
    assert SECRET not in str(findings)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    assert "does not exist" in the(check_data(tmp_path / "a.jsonl", None)[1]).message
    assert "is not a file" in the(check_data(tmp_path, None)[1]).message


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "embeddings").touch()
    answers = {Question(f"{SECRET}?", ("yes", "no")): [0.5, 0.5]}
    dataset = PreferenceDataset("a", {"x": GroupPreferences("x", answers)})  # type: ignore[arg-type]
    finding = the(check_embedding(tmp_path, dataset))
    assert finding.status == "wrong"
    assert "embedding cache" in finding.message
    assert SECRET not in str(finding)


# -- server


def at(port: int) -> Address:
    return Address("127.0.0.1", port)


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
    assert "refuses connections" in the(check_port(at(tls.free_port()), TIMEOUT)).message
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
    closed = at(tls.free_port())
    assert "gives no answer" in the(check_program(closed, ca.pem)).message
    assert "gives no answer" in the(check_registration(closed, ca.pem, key)).message


def test_an_open_control_api_is_warned_of(tmp_path: Path, ca: Signed) -> None:
    shown = tls.server(ca, "127.0.0.1")
    with tls.listening(tmp_path, shown, status="405 Method Not Allowed") as port:
        assert the(check_exposure(at(port), ca.pem, TIMEOUT)).status == "warning"
    with tls.listening(tmp_path, shown, status="404 Not Found") as port:
        assert check_exposure(at(port), ca.pem, TIMEOUT) == []


# -- together


def whole(node: Path, ca: Signed, port: int, questions: int = 3) -> None:
    """Let a node's folder fit a test server; its data file has too few questions."""
    (node / "ca.crt").write_bytes(ca.pem)
    edit(node, "localhost:8443", f"127.0.0.1:{port}")
    (node / "state" / "embeddings").touch()  # no language model in these tests
    write(node / "answers.jsonl", [row(i) for i in range(questions)])


def test_one_failure_hides_no_other(tmp_path: Path, node: Path, ca: Signed) -> None:
    (node / "node.key").chmod(0o644)
    shown = tls.server(ca, "elsewhere")
    with tls.listening(tmp_path, shown, ahead=-12) as port:
        whole(node, ca, port)
        found = list(check_node(node, timeout=TIMEOUT))
    wrong = {finding.step for finding in found if finding.status == "wrong"}
    assert wrong >= {"Key", "Group", "Embedding", "Certificate", "Clock"}
    # A signature goes to no server whose certificate is wrong.
    skipped = {finding.step for finding in found if finding.status == "skipped"}
    assert skipped == {"Program", "Registration"}
    assert SECRET not in str(found)


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    found = list(check_node(tmp_path))
    assert {finding.step for finding in found if finding.status == "wrong"} >= {"Settings", "Key"}
    assert {finding.step for finding in found if finding.status == "skipped"} == {
        "Data file", "Server",
    }  # fmt: skip


def test_a_proxy_is_left_to_flower(
    tmp_path: Path, node: Path, ca: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://user:{SECRET}@127.0.0.1:{tls.free_port()}")
    shown = tls.server(ca, "127.0.0.1")
    with tls.listening(tmp_path, shown, status="401 Unauthorized", body=UNSIGNED) as port:
        whole(node, ca, port)
        found = {finding.step: finding for finding in check_node(node, timeout=TIMEOUT)}
        assert (found["Proxy"].status, found["Program"].status) == ("warning", "wrong")
        assert "Port" not in found
        assert SECRET not in str(found)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        found = {finding.step: finding for finding in check_node(node, timeout=TIMEOUT)}
    assert "Proxy" not in found
    assert (found["Port"].status, found["Program"].status) == ("ok", "ok")


def test_the_command(
    tmp_path: Path, node: Path, ca: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # the command would set it for this process
    shown = tls.server(ca, "127.0.0.1")
    with tls.listening(tmp_path, shown, status="401 Unauthorized", body=UNSIGNED) as port:
        whole(node, ca, port)
        plain = CliRunner().invoke(app, ["deploy", "check", str(node)])
        machine = CliRunner().invoke(app, ["deploy", "check", str(node), "--json"])
    assert (plain.exit_code, machine.exit_code) == (1, 1)
    assert "WRONG      Group        The file holds 3 question(s)" in plain.output
    assert "-> Add answers, or ask the operator" in plain.output
    assert SECRET not in plain.output + machine.output
    document = json.loads(machine.output)
    assert document["ok"] is False
    assert {"step", "status", "message", "remedy"} == set(document["findings"][0])
    assert CliRunner().invoke(app, ["deploy", "check", str(tmp_path / "absent")]).exit_code == 2
