"""The deployed federation: its nodes and their data, the faults, and what the run says of them."""

import contextlib
import datetime
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from pluralllm_fl.datasets import SyntheticSpec, load_dataset
from pluralllm_fl.deploy.check_data import check_embedding
from pluralllm_fl.preferences import PreferenceDataset
from tests.e2e.federation import Deployment

KILLED, CUT, FULL, LEFT, STARVED = "Germany", "Nigeria", "Egypt", "Argentina", "Canada"
TRAINING = [KILLED, CUT, FULL, LEFT, STARVED]
LATE = "Brazil"  # never trains
QUESTIONS = 40


def survey() -> PreferenceDataset:
    """The real survey where it lies beside the repository, else a generated one."""
    path = Path(__file__).parents[3] / "shared" / "data" / "global_opinions" / "global_opinions.csv"
    if path.is_file():
        return load_dataset(str(path))
    return load_dataset("synthetic", synthetic=SyntheticSpec(groups=6, questions=QUESTIONS))


def mount(folder: Path) -> Any:
    """Give a folder a small disk; return what takes it away again."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        return lambda: None
    return lambda: subprocess.run(["umount", "-l", str(folder)], check=False)


def impersonate(deployment: Deployment, holder: str, group: str) -> None:
    """Let a node that is only evaluated pass for a group that trains and is not there yet."""
    settings = deployment.node(holder) / "node.env"
    honest, data = settings.read_text(), deployment.node(group) / "answers.jsonl"
    settings.write_text(f"{honest}\nGROUP='{group}'\nROLE=train\nDATASET_PATH='{data}'\n")
    liar = deployment.start_node(holder)
    deployment.wait(
        lambda: deployment.events("node_refused"), 120, f"{holder} to be refused as {group}"
    )
    liar.stop()
    settings.write_text(honest)


def embed(deployment: Deployment) -> None:
    """Embed the questions on the first node, as check.sh does; the others get a copy."""
    first, *others = (deployment.node(group) for group in (*TRAINING, LATE))
    (finding,) = check_embedding(first, load_dataset(str(first / "answers.jsonl")))
    assert finding.status == "ok", finding.message
    for other in others:
        shutil.copytree(first / "state" / "embeddings", other / "state" / "embeddings")


def starve(federation: Deployment, seconds: float) -> None:
    """Kill what computes on a node, as the system does when memory runs out."""
    process = federation.units[STARVED].process
    assert process is not None
    end, seen = time.monotonic() + seconds, dict[int, float]()
    while time.monotonic() < end:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "flwr-clientapp" in " ".join(child.cmdline()):
                    began = seen.setdefault(child.pid, time.monotonic())
                    if time.monotonic() - began > 1:
                        child.kill()
        time.sleep(0.2)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()


def at_work(federation: Deployment, group: str) -> bool:
    """Whether a node has a training message that it has not answered."""
    text = federation.units[group].text()
    return text.count("Receiving: train message") > text.count("Sending: train message")


def dropped(federation: Deployment, group: str) -> list[str]:
    return [e["reason"] for e in federation.events("reply_dropped") if e["group"] == group]


def told(federation: Deployment, event: str) -> set[str]:
    """Return the groups that events of one kind are about."""
    return {e["group"] for e in federation.events(event)}


def kill_server_app(federation: Deployment) -> None:
    process = federation.server_app()
    assert process is not None
    process.kill()


def kill_superlink(federation: Deployment) -> None:
    federation.units["superlink"].kill()


def reboot(federation: Deployment) -> None:
    for name in ("run", "superlink", "gateway"):
        federation.units[name].stop(signal.SIGKILL)
    assert not federation.listens()
    for name in ("superlink", "gateway"):
        federation.units[name].start()
    # Not run.sh again, but the other way to go on.
    federation.unit("resume", "server", "pluralllm", "resume", federation.run).start()


def expired(pem: bytes, authority: EllipticCurvePrivateKey) -> x509.Certificate:
    """Return the same certificate but for its dates: it ended yesterday."""
    old = x509.load_pem_x509_certificate(pem)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(
        issuer_name=old.issuer, subject_name=old.subject, public_key=old.public_key(),
        serial_number=x509.random_serial_number(), not_valid_before=past - datetime.timedelta(9),
        not_valid_after=past, extensions=list(old.extensions),
    )  # fmt: skip
    return builder.sign(authority, hashes.SHA256())
