"""``pluralllm deploy check``: is this machine ready to run its node?

Steps do not depend on each other where that is possible, so that one failure hides no other.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm_fl.deploy.check_data import check_data, check_embedding
from pluralllm_fl.deploy.check_folder import (
    Address,
    check_key,
    check_programs,
    check_room,
    read_settings,
)
from pluralllm_fl.deploy.check_server import (
    check_clock,
    check_exposure,
    check_name,
    check_port,
    check_program,
    check_registration,
    through_proxy,
)
from pluralllm_fl.deploy.check_tls import check_certificate, read_ca
from pluralllm_fl.deploy.findings import Finding

__all__ = ["Finding", "check_node"]

TIMEOUT = 5.0  # s


def check_node(
    folder: Path, progress: Callable[[int, int], None] | None = None, timeout: float = TIMEOUT
) -> Iterator[Finding]:
    """Check everything that a node needs, and yield the findings as they come.

    Parameters
    ----------
    folder : Path
        The node's folder, as ``pluralllm deploy init`` wrote it.
    progress : callable, optional
        Called with (texts done, all texts) while questions are embedded.
    timeout : float
        For every connection to the server, in seconds.
    """
    folder = folder.expanduser().absolute()
    settings, findings = read_settings(folder)
    yield from findings
    yield from check_programs(settings)
    key, findings = check_key(folder)
    yield from findings
    yield from check_room(folder)
    yield from _data(folder, settings, progress)
    if "SUPERLINK" in settings:
        yield from _server(folder, Address.parse(settings["SUPERLINK"]), key, timeout)
    else:
        yield Finding("Server", "skipped", "node.env names no valid SUPERLINK.")


def _data(
    folder: Path, settings: Mapping[str, str], progress: Callable[[int, int], None] | None
) -> Iterator[Finding]:
    if "DATASET_PATH" not in settings:
        yield Finding("Data file", "skipped", "node.env names no valid DATASET_PATH.")
        return
    path = folder / settings["DATASET_PATH"]  # as supernode.sh has it
    dataset, findings = check_data(path, settings.get("GROUP"))
    yield from findings
    if dataset is None:
        yield Finding("Embedding", "skipped", "Nothing to embed.")
    else:
        yield from check_embedding(folder, dataset, progress)


def _server(
    folder: Path, address: Address, key: ec.EllipticCurvePrivateKey | None, timeout: float
) -> Iterator[Finding]:
    ca, findings = read_ca(folder)
    yield from findings
    if through_proxy(address):
        message = "The environment names a proxy, which the node will go through too."
        remedy = "If it should not: add the server's name to the environment variable no_proxy."
        yield Finding("Proxy", "warning", message, remedy)
        trusted = ca is not None
    else:
        trusted = yield from _connection(address, ca, timeout)
    # A signature shown to the wrong server could be shown on to the right one.
    if ca is None or not trusted:
        yield Finding("Program", "skipped", "No trusted connection to the server.")
        yield Finding("Registration", "skipped", "No trusted connection to the server.")
        return
    yield from check_program(address, ca)
    if key is None:
        yield Finding("Registration", "skipped", "There is no usable node.key to ask with.")
    else:
        yield from check_registration(address, ca, key)
    if not through_proxy(address):
        yield from check_exposure(address, ca, timeout)


def _connection(
    address: Address, ca: bytes | None, timeout: float
) -> Generator[Finding, None, bool]:
    """Go as far towards the server as it lets us; return whether it can be trusted."""
    for check in (check_name, check_port):
        findings = check(address, timeout)
        yield from findings
        if _wrong(findings):
            yield Finding("Certificate", "skipped", "The server cannot be reached.")
            return False
    findings = [] if ca is None else check_certificate(address, ca, timeout)
    yield from findings
    yield from check_clock(address, timeout)
    return ca is not None and not _wrong(findings)


def _wrong(findings: Sequence[Finding]) -> bool:
    return any(finding.status == "wrong" for finding in findings)
