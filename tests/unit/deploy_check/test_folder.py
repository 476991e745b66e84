"""``deploy check``: a node's settings, keys, room and programs, against real files and shells."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm_fl.deploy import check_folder
from pluralllm_fl.deploy.check_folder import (
    Address,
    check_key,
    check_programs,
    check_room,
    fingerprint,
    parse_settings,
    read_settings,
)
from tests import tls
from tests.unit.deploy_check.node_folder import edit, statuses, the


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
