"""deploy init: what is written, how it is protected, and that others accept it."""

import datetime
import ipaddress
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.supernode.register import try_load_public_key

from pluralllm_fl.config import RunConfig
from tests.unit.deploy.federation import HOSTS, SEEN, SLUGS, UNSEEN, assert_private, files, needs


def test_nobody_else_reads_anything(written: Path) -> None:
    assert_private(written)


def test_every_node_has_a_folder(written: Path) -> None:
    assert {path.name for path in (written / "nodes").iterdir()} == SLUGS
    assert {path.stem for path in (written / "server" / "keys").iterdir()} == SLUGS


def test_secrets_are_in_key_files_alone(written: Path) -> None:
    keys = {path for path in files(written) if b"PRIVATE KEY" in path.read_bytes()}
    password = written / "server" / "superexec.key"
    assert keys | {password} == set(written.rglob("*.key"))
    assert len(keys) == 2 + len(SLUGS)
    for key in (*keys, password):
        secret = b"".join(key.read_bytes().splitlines()[1:-1])[-60:] or key.read_bytes()
        assert len(secret) >= 60
        for path in set(files(written)) - {key}:
            assert secret not in path.read_bytes().replace(b"\n", b"")


def test_names_and_addresses_of_the_certificate(written: Path) -> None:
    certificate = x509.load_pem_x509_certificate((written / "server/server.crt").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    addresses = [str(ip) for ip in found.get_values_for_type(x509.IPAddress)]
    assert addresses == ["192.0.2.7", "2001:db8::1", "127.0.0.1", "::1"]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < datetime.timedelta(
        days=366
    )


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1", "::1", "other.example.org"])
def test_certificate_is_accepted_by_others(written: Path, host: str) -> None:
    folder, known = written / "server", host != "other.example.org"
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        option = "-verify_ip"
    except ValueError:
        subject, option = x509.DNSName(host), "-verify_hostname"

    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    verifier = PolicyBuilder().store(Store([authority])).build_server_verifier(subject)
    if known:
        assert verifier.verify(server, []) == [server, authority]
    else:
        with pytest.raises(VerificationError):
            verifier.verify(server, [])

    needs("openssl")
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", option, host]
    command += ["-CAfile", folder / "ca.crt", folder / "server.crt"]
    assert (subprocess.run(command, capture_output=True).returncode == 0) == known


def test_server_certificate_cannot_sign(written: Path) -> None:
    for name, signs in (("ca/ca.crt", True), ("server/server.crt", False)):
        certificate = x509.load_pem_x509_certificate((written / name).read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert constraints.value.ca is signs
        assert usage.value.key_cert_sign is signs


@pytest.mark.parametrize("slug", sorted(SLUGS))
def test_node_keys_are_what_flower_takes(written: Path, slug: str) -> None:
    private = load_ssh_private_key((written / "nodes" / slug / "node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    public = written / "server" / "keys" / f"{slug}.pub"
    assert try_load_public_key(public) == try_load_public_key(written / "nodes" / slug / "node.pub")
    needs("ssh-keygen")
    command = ["ssh-keygen", "-y", "-f", written / "nodes" / slug / "node.key"]
    derived = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == public.read_text().split()[:2]


def test_run_config(written: Path) -> None:
    values = tomllib.loads((written / "server" / "federation.toml").read_text("utf-8"))
    config = RunConfig.default(values)
    assert config.seen == SEEN
    assert config.unseen == UNSEEN
    assert (config.expected_nodes, config.min_nodes) == (4, 3)
    assert (config.validation_fraction, config.test_fraction) == (0, 0)
    assert config.output_dir == str(written / "server" / "state" / "runs")


def test_connection_of_flowers_commands(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(written / "server" / "flwr"))
    connection = read_superlink_connection("federation")
    assert connection.address == "127.0.0.1:8444"
    assert connection.root_certificates == str(written / "server" / "ca.crt")
    assert not connection.insecure


def test_scripts_are_sound(written: Path) -> None:
    scripts = list(written.rglob("*.sh"))
    assert len(scripts) == 4 + 2 * len(SLUGS)
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    needs("shellcheck")
    subprocess.run(["shellcheck", "--severity=warning", *scripts], check=True)


def test_units_are_sound(written: Path, tmp_path: Path) -> None:
    needs("systemd-analyze")
    units = list(shutil.copytree(written / "server" / "systemd", tmp_path / "units").iterdir())
    node = written / "nodes" / "germany"
    # The checklist's own command, up to where it needs root.
    checklist = (node / "CHECKLIST.md").read_text()
    fill_in, name = re.findall(r"(sed .*) \| sudo tee \S*/(\S+)", checklist)[0]
    units.append(tmp_path / "units" / name)
    units[-1].write_bytes(subprocess.check_output(["bash", "-c", fill_in], cwd=node))
    for unit in units:
        answer = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
        )
        # Units of the machine itself are not our business.
        complaints = [x for x in answer.stderr.splitlines() if "pluralllm" in x]
        assert not complaints, answer.stderr


def test_compose_files_are_sound(written: Path) -> None:
    text = (written / "server" / "compose.yml").read_text("utf-8")
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"superlink", "gateway", "run"}
    for service in services.values():
        assert service["network_mode"] == "host"
        target = service["volumes"][0]["target"].replace("$$", "$")
        assert target == str(written / "server")
    for slug in SLUGS:
        text = (written / "nodes" / slug / "compose.yml").read_text("utf-8")
        assert yaml.safe_load(text)["services"]["supernode"]["volumes"] == [".:/node"]
