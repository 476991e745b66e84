"""What the checks of a node's folder are shown and told."""

import json
from collections.abc import Sequence
from pathlib import Path

from pluralllm_fl.deploy.check_folder import Address
from pluralllm_fl.deploy.findings import Finding

TIMEOUT = 2.0
UNSIGNED = b'{"detail":"Invalid SuperNode authentication"}'  # Flower's answer


def statuses(findings: Sequence[Finding]) -> list[str]:
    return [finding.status for finding in findings]


def the(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    return finding


def edit(node: Path, old: str, new: str) -> None:
    path = node / "node.env"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


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


def at(port: int) -> Address:
    return Address("127.0.0.1", port)
