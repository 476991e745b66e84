"""A federation on six machines: every fault in one run, which ends as if there was none.

SuperLink, gateway and SuperNodes are the real programs, started by the scripts that
`pluralllm deploy init` wrote, over TLS with node keys, each in a network of its own where that is
permitted. The fixtures inject the faults; every test asserts what became of one.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pluralllm_fl.deploy.certificates import Authority, certificate_pem
from tests.e2e.faults import (
    CUT,
    FULL,
    KILLED,
    LATE,
    LEFT,
    QUESTIONS,
    STARVED,
    TRAINING,
    at_work,
    dropped,
    embed,
    expired,
    fill,
    impersonate,
    kill_server_app,
    kill_superlink,
    mount,
    reboot,
    starve,
    survey,
    told,
)
from tests.e2e.federation import Deployment, write_answers
from tests.e2e.processes import started
from tests.e2e.units import Unit
from tests.integration.inprocess import in_this_process

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("nginx", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin") is None,
        reason="nginx is not installed",
    ),
]
ROUNDS = 5
SETTINGS: dict[str, int] = {
    "num-server-rounds": ROUNDS, "local-steps": 5, "seed": 3,
    "question-features": 64, "width": 32, "feed-forward": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict[str, Any]]]:
    """Answers of every node to the same questions, so that they are embedded only once."""
    dataset = survey()
    groups = [*TRAINING, LATE]
    sources = groups if set(groups) <= set(dataset.groups) else sorted(dataset.groups)
    answers = [dataset.groups[source].answers for source in sources]
    common = [q for q in answers[0] if all(q in other for other in answers)][:QUESTIONS]
    assert len(common) == QUESTIONS
    return {
        group: [
            {"group": group, "question": q.text, "options": q.options,
             "distribution": own[q].tolist()} for q in common
        ]
        for group, own in zip(groups, answers, strict=True)
    }  # fmt: skip


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, list[dict[str, Any]]]
) -> Iterator[Deployment]:
    """Five of six nodes are there and round 1 is done; the last of the five came late."""
    mark = f"deployment-{os.getpid()}"
    folder = tmp_path_factory.mktemp("deployment")
    with contextlib.ExitStack() as stack:
        deployment = stack.enter_context(Deployment(folder, TRAINING, [LATE], mark=mark))
        for group, answers in data.items():
            write_answers(deployment.node(group) / "answers.jsonl", answers)
        stack.callback(mount(deployment.node(FULL) / "state"))
        embed(deployment)
        deployment.configure(
            **{key.replace("-", "_"): value for key, value in SETTINGS.items()},
            expected_nodes=5,
        )
        deployment.start_server()
        for group in TRAINING[:-1]:
            deployment.start_node(group)
        deployment.start_run()
        deployment.wait(lambda: deployment.status == "running", 120, "the run to look for nodes")
        impersonate(deployment, LATE, TRAINING[-1])
        deployment.start_node(TRAINING[-1])
        deployment.wait(lambda: deployment.round >= 1, 300, "round 1")
        yield deployment
    assert not started(mark)


@pytest.fixture(scope="module")
def node_faults(federation: Deployment) -> Deployment:
    """Five faults on five nodes in one round, and a node that was never there before."""
    start = federation.round
    leaving = federation.units[LEFT]
    strikes = [
        threading.Thread(target=starve, args=(federation, 12)),
        threading.Thread(target=leaving.stop),
    ]
    for strike in strikes:
        strike.start()
    if federation.network.separate:
        federation.network.cut(CUT)
        # The SuperLink counts it as online for up to 60 s; the server must look in between.
        mend = threading.Timer(66, federation.network.mend, [CUT])
        mend.start()
    filler = federation.node(FULL) / "state" / "filler"
    if os.path.ismount(filler.parent):
        fill(filler)
    federation.wait(lambda: at_work(federation, KILLED), 60, f"{KILLED} to be at work")
    federation.units[KILLED].kill()
    federation.start_node(LATE)
    for strike in strikes:
        strike.join()
    federation.wait(lambda: dropped(federation, LEFT), 120, f"{LEFT} to be missed")
    leaving.start()
    federation.wait(
        lambda: dropped(federation, KILLED) or KILLED in told(federation, "message_resent"),
        120, f"{KILLED} to be missed",
    )  # fmt: skip
    filler.unlink(missing_ok=True)
    federation.wait(lambda: federation.round > start, 300, "the round to be completed after all")
    federation.wait(lambda: federation.events("node_joined"), 90, f"{LATE} to be taken in")
    return federation


# -- nodes


def test_node_killed_at_work_is_missed_and_comes_back(node_faults: Deployment) -> None:
    """Missed by its heartbeats or by a question behind its message.

    The SuperLink lets it in again as soon as its last heartbeat has run out; if that happens
    between two looks of the server, only that question tells that its message is lost.
    """
    assert node_faults.units[KILLED].starts > 1
    if KILLED in told(node_faults, "message_resent"):
        assert not dropped(node_faults, KILLED)
    else:
        assert "Unavailable" in dropped(node_faults, KILLED)[0]
        assert KILLED in told(node_faults, "node_back")
    assert KILLED in node_faults.events("round")[-1]["by_group"]


def test_clientapp_that_the_system_killed_is_done_again(node_faults: Deployment) -> None:
    """As when a node's memory runs out: the SuperNode starts it again or reports it."""
    assert all("stopped responding" in reason for reason in dropped(node_faults, STARVED))
    assert node_faults.units[STARVED].starts == 1
    assert STARVED in node_faults.events("round")[-1]["by_group"]


def test_node_cut_off_for_a_minute(node_faults: Deployment) -> None:
    if not node_faults.network.separate:
        pytest.skip("network namespaces are not permitted here")
    assert dropped(node_faults, CUT)
    assert CUT in told(node_faults, "node_back")
    assert node_faults.units[CUT].starts == 1  # Flower reconnects by itself


def test_node_with_a_full_disk_says_so_and_trains_when_there_is_room(
    node_faults: Deployment,
) -> None:
    if not os.path.ismount(node_faults.node(FULL) / "state"):
        pytest.skip("cannot mount a small disk here")
    assert re.search("Make room|No space left on device", dropped(node_faults, FULL)[0])
    last = node_faults.events("round")[-1]
    assert FULL in last["by_group"]


def test_node_that_leaves_and_comes_back(node_faults: Deployment) -> None:
    assert "offline" in dropped(node_faults, LEFT)[0] or "Unavailable" in dropped(
        node_faults, LEFT
    )[0]  # fmt: skip
    assert LEFT in told(node_faults, "node_back")


def test_a_key_does_not_pass_for_another_group_or_role(federation: Deployment) -> None:
    named = f"The node with the key of '{LATE}' (evaluate) says it is '{TRAINING[-1]}' (train)."
    (refused,) = federation.events("node_refused")
    assert refused["reason"].startswith(named)
    assert named in federation.units["run"].text()
    groups = [node["group"] for node in federation.events("roster")[0]["nodes"]]
    assert groups == sorted(TRAINING)


def test_node_that_comes_late_is_taken_in(node_faults: Deployment) -> None:
    [joined] = node_faults.events("node_joined")
    assert (joined["group"], joined["role"]) == (LATE, "evaluate")
    assert LATE in json.loads((node_faults.run / "run.json").read_text())["unseen"]


def test_logs_hold_no_question_and_no_answer(
    node_faults: Deployment, data: dict[str, list[dict[str, Any]]]
) -> None:
    for group, answers in data.items():
        text = node_faults.units[group].text()
        assert "SuperNode ID" in text
        for row in answers:
            assert row["question"][:60] not in text
            shares = [str(share)[:10] for share in row["distribution"] if len(str(share)) >= 10]
            assert not any(share in text for share in shares)


# -- the server


@pytest.fixture(scope="module")
def server_faults(node_faults: Deployment) -> Deployment:
    """The ServerApp is killed, then the SuperLink, then the machine; the run is resumed by hand."""
    federation = node_faults
    for strike in (kill_server_app, kill_superlink, reboot):
        reached = federation.round + 1
        strike(federation)
        federation.wait(
            lambda reached=reached: federation.round >= reached, 300, f"{strike.__name__}: a round"
        )
    report = federation.run / "report.html"
    federation.wait(report.is_file, 300, "the run to be completed and reported")
    federation.units["resume"].stop()
    return federation


def test_run_is_resumed_after_each_fault_of_the_server(server_faults: Deployment) -> None:
    starts = [e["first_round"] for e in server_faults.events("run_started")]
    assert len(starts) == 4
    rounds = [e["round"] for e in server_faults.events("round")]
    assert rounds == list(range(1, ROUNDS + 1))  # each completed round once
    evaluated = [e["round"] for e in server_faults.events("evaluation")]
    assert evaluated == list(range(ROUNDS + 1))
    text = server_faults.units["run"].text()
    assert re.search(r"The run fell after round \d: the server app was killed\. It is", text)
    assert text.count("joined (evaluate)") == 1  # what happened before is not told again


def test_model_is_that_of_one_process_bit_for_bit(
    server_faults: Deployment, data: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """As that of a simulation is (tests/e2e/test_simulation.py)."""
    write_answers(tmp_path / "all.jsonl", [row for answers in data.values() for row in answers])
    here = in_this_process(
        server_faults.run, tmp_path, dataset=str(tmp_path / "all.jsonl"), node_keys="",
        seen_groups=";".join(TRAINING), unseen_groups=LATE, expected_nodes=0,
        embedding_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    ours, theirs = (
        (run / "model" / "model.safetensors").read_bytes() for run in (server_faults.run, here)
    )
    assert ours == theirs


def test_report_names_who_was_away(server_faults: Deployment) -> None:
    page = (server_faults.run / "report.html").read_text()
    text = re.sub(r"<[^>]*>", "", page)
    assert f"{LEFT} was away and came back in round" in text
    assert f"{LATE} joined late, in round" in text


# -- intruders


@pytest.fixture(scope="module")
def intruders(
    server_faults: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Unit]]:
    """Nodes that must not get in, all at once."""
    folder, federation = tmp_path_factory.mktemp("intruders"), server_faults
    address = (federation.node(LEFT) / "node.env").read_text()
    found = re.search(r"SUPERLINK=(\S+)", address)
    assert found is not None
    superlink = found[1]
    for name in ("node", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", folder / name],
            check=True,
        )
    (folder / "other.crt").write_bytes(certificate_pem(Authority.create(1).certificate))
    trusted = ["--root-certificates", str(federation.folder / "ca" / "ca.crt")]
    cases = {
        "no key": trusted,
        "unknown key": [*trusted, "--auth-supernode-private-key", str(folder / "other")],
        "wrong CA": ["--root-certificates", str(folder / "other.crt"),
                     "--auth-supernode-private-key", str(folder / "node"), "--max-retries", "1"],
        "plain text": ["--insecure", "--max-retries", "1"],
    }  # fmt: skip
    units = {}
    for number, (name, arguments) in enumerate(cases.items()):
        unit = Unit(
            [*federation.network.inside(LEFT), "flower-supernode", "--superlink", superlink,
             "--host", "127.0.0.1", "--port", str(9400 + number), *arguments],
            folder / f"{number}.log",
            federation.env | {"FLWR_HOME": str(folder / str(number)),
                              "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        )  # fmt: skip
        unit.spawn()
        units[name] = unit
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(u.running for u in units.values()):
        time.sleep(0.5)
    yield units
    for unit in units.values():
        unit.stop(signal.SIGKILL)


@pytest.mark.parametrize(
    ("intruder", "message"),
    [
        ("no key", "must be registered"),
        ("unknown key", "could not be activated|No SuperNode found|activat"),
        ("wrong CA", "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ("plain text", "400|Bad Request|plain"),
    ],
)
def test_intruder_is_refused(intruders: dict[str, Unit], intruder: str, message: str) -> None:
    unit = intruders[intruder]
    assert not unit.running
    assert unit.code not in (0, None)
    assert re.search(message, unit.text(), re.IGNORECASE), unit.text()
    assert "SuperNode ID" not in unit.text()


def test_expired_certificate_is_refused_and_explained(server_faults: Deployment) -> None:
    """The server shows a certificate of the right authority that is no longer valid."""
    federation = server_faults
    gateway, certificate = federation.units["gateway"], federation.folder / "server" / "server.crt"
    authority = load_pem_private_key((federation.folder / "ca" / "ca.key").read_bytes(), None)
    assert isinstance(authority, EllipticCurvePrivateKey)
    certificate.write_bytes(certificate_pem(expired(certificate.read_bytes(), authority)))
    gateway.stop()
    assert not federation.listens()  # nobody is left who could show the certificate of before
    gateway.start()
    federation.wait(federation.listens, 30, "the gateway to listen again")
    done = federation.call(LEFT, federation.node(LEFT) / "check.sh")
    assert done.returncode == 1
    assert "expired" in done.stdout, done.stdout + done.stderr
