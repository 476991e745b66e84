"""``deploy check``: all checks of a folder, and the command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.deploy.check import check_node
from tests import tls
from tests.ports import free_port
from tests.tls import Signed
from tests.unit.deploy_check.node_folder import SECRET, TIMEOUT, UNSIGNED, edit, row, write


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
    monkeypatch.setenv("https_proxy", f"http://user:{SECRET}@127.0.0.1:{free_port()}")
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
