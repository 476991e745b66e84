"""deploy init, add and renew: what is written, how it is protected, and that others accept it."""

import datetime
import fnmatch
import ipaddress
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
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
from flwr.common.config import parse_config_args
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from pluralllm_fl.cli import app
from pluralllm_fl.config import RunConfig
from pluralllm_fl.deploy import names
from pluralllm_fl.deploy.layout import Node, node_files

SEEN = ("Germany", "India (Current national sample)", """it's "x"=日本 \\$HOME""")
UNSEEN = ("日本",)
SLUGS = {"germany", "india-current-national-sample", "it-s-x-home", "group"}
HOSTS = ("fed.example.org", "192.0.2.7", "2001:db8::1")
GROUP_NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters=";"), min_size=1, max_size=60
).filter(lambda name: name == name.strip())


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["deploy", *map(str, arguments)], env={"COLUMNS": "250"})
    assert "Traceback" not in result.output
    return result


def init(folder: Path, *more: str, groups: str = "A;B", server: str = "localhost") -> Result:
    return invoke("init", folder, "--groups", groups, "--server", server, *more)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation in a folder with an awkward name, made under a permissive umask."""
    folder = tmp_path_factory.mktemp("deploy") / "it's 100% ü $x"
    before = os.umask(0)
    try:
        result = init(
            folder, "--unseen", ";".join(UNSEEN), "--years", "1",
            groups=";".join(SEEN), server=";".join(HOSTS),
        )  # fmt: skip
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.output
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return folder


@pytest.fixture
def federation(written: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return shutil.copytree(written, tmp_path / "copy")


def test_nobody_else_reads_anything(written: Path) -> None:
    for path in (written, *written.rglob("*")):
        private = 0o700 if path.is_dir() or path.suffix == ".sh" else 0o600
        assert stat.S_IMODE(path.lstat().st_mode) == private, path


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


def test_next_steps_are_shown(tmp_path: Path) -> None:
    output = init(tmp_path / "fed").output
    for step in ("nodes/a", "./superlink.sh", "./gateway.sh", "./register.sh", "./run.sh", "/ca"):
        assert step in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--groups", "A;A", "--server", "h"), "Group 'A' is there twice"),
        (("--groups", "A", "--unseen", "A", "--server", "h"), "Group 'A' is there twice"),
        (("--groups", ";", "--server", "h"), "--groups is empty"),
        (("--groups", "A\nB", "--server", "h"), "control characters"),
        (("--groups", "A", "--server", ""), "--server is empty"),
        (("--groups", "A", "--server", "https://h"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "h:8443"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "a b"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "256.1.1.1"), "neither a DNS name nor an IP address"),
        (("--groups", "A", "--server", "0.0.0.0"), "nodes cannot connect to it"),
        (("--groups", "A", "--server", "fe80::1%eth0"), "nodes cannot connect to it"),
        (("--groups", "A", "--server", "h", "--port", "443"), "Invalid value for '--port'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = invoke("init", tmp_path / "fed", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    result = init(tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert init(tmp_path).exit_code == 0
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("worktree", [False, True])
def test_a_git_tree_is_refused(tmp_path: Path, worktree: bool) -> None:
    tree = tmp_path / "project"
    tree.mkdir()
    if worktree:
        (tree / ".git").write_text("gitdir: elsewhere")
    else:
        (tree / ".git").mkdir()
    (tmp_path / "link").symlink_to(tree)
    for folder in (tree / "deep" / "fed", tmp_path / "link" / "fed"):
        result = init(folder)
        assert result.exit_code == 2
        assert f"lies in the git work tree {tree}" in result.output
    assert [path.name for path in tree.iterdir()] == [".git"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from pluralllm_fl.cli import main; main()"]
    command += ["deploy", "init", str(tmp_path / "fed"), "--groups", "A", "--server", "h"]
    answer = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; {shlex.join(command)}"],
        env=os.environ | {"COLUMNS": "250"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert "File too large" in answer.stderr
    assert list(tmp_path.iterdir()) == []


# -- the node's script


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder whose Flower only shows what it was given."""
    folder = tmp_path_factory.mktemp('a "node" \\ here')
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("flower-supernode", "python"):
        (programs / name).write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        (programs / name).chmod(0o755)
    (folder / "answers.jsonl").write_text("")
    write_node(folder, "A")
    return folder


def write_node(folder: Path, group: str) -> None:
    node = Node(group=group, slug="x", role="train", superlink="h:1", runtime_port=9101)
    for name, content in node_files(node, b"").items():
        path = folder / name.removeprefix("nodes/x/")
        if name.startswith("nodes/x/") and content is not None:
            path.write_bytes(content)
            path.chmod(0o700 if path.suffix == ".sh" else 0o600)
    with (folder / "node.env").open("a") as file:
        file.write(f"VENV={shlex.quote(str(folder / 'venv'))}\n")


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [folder / "supernode.sh", "--once"]
    return subprocess.run(command, cwd="/", capture_output=True, text=True)


@settings(max_examples=60)
@given(group=GROUP_NAMES)
def test_any_group_name_reaches_flower(node: Path, group: str) -> None:
    write_node(node, group)
    answer = start(node)
    assert answer.returncode == 0, answer.stderr
    arguments = answer.stdout.split("\0")
    given_config = arguments[arguments.index("--node-config") + 1]
    assert parse_config_args([given_config]) == {
        "dataset-path": str(node / "answers.jsonl"),
        "group": group,
        "role": "train",
        "embedding-cache": str(node / "state" / "embeddings"),
    }


def test_a_node_without_its_data_says_so(node: Path) -> None:
    write_node(node, "A")
    with (node / "node.env").open("a") as file:
        file.write("DATASET_PATH=/no/such/file.jsonl\n")
    answer = start(node)
    assert answer.returncode == 1
    assert "There is no readable data file /no/such/file.jsonl: set DATASET_PATH" in answer.stderr


def test_a_key_that_others_may_read_is_refused(node: Path) -> None:
    write_node(node, "A")
    (node / "node.key").chmod(0o640)
    answer = start(node)
    assert answer.returncode == 1
    assert "chmod 600 node.key" in answer.stderr


def test_a_missing_key_is_named_as_missing(node: Path) -> None:
    write_node(node, "A")
    (node / "node.key").unlink()
    answer = start(node)
    assert answer.returncode == 1
    assert f"There is no {node}/node.key" in answer.stderr
    assert "Others may read" not in answer.stderr


def test_nothing_private_goes_to_the_docker_daemon() -> None:
    root = Path(__file__).resolve().parents[2]
    ignored = (root / ".dockerignore").read_text().splitlines()
    assert {".git", "runs/", "**/__pycache__/"} <= {*ignored}
    kept = [line for line in (root / ".gitignore").read_text().splitlines() if line]
    patterns = {line.strip("/").removeprefix("**/") for line in ignored}
    for line in kept:  # what git leaves out, docker does too
        name = line.strip("/")
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_a_missing_environment_is_named(node: Path) -> None:
    write_node(node, "A")
    with (node / "node.env").open("a") as file:
        file.write("VENV=/no/such\nPATH=/usr/bin:/bin\n")
    answer = start(node)
    assert answer.returncode == 1
    assert "flower-supernode is not installed, or VENV in" in answer.stderr


# -- names


@given(st.lists(GROUP_NAMES, max_size=20), st.lists(GROUP_NAMES, max_size=5))
def test_slugs_are_unique_file_names(groups: list[str], before: list[str]) -> None:
    taken = names.slugs(before)
    new = names.slugs(groups, taken)
    assert len(set(new) | set(taken)) == len(groups) + len(before)
    for slug in new:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
        assert len(slug) <= 50


def test_hosts_in_their_usual_form() -> None:
    given_hosts = "Fed.Example.ORG.; [2001:DB8:0::1] ;bücher.example;10.0.0.1;fed.example.org"
    assert names.hosts(given_hosts) == [
        "fed.example.org", "2001:db8::1", "xn--bcher-kva.example", "10.0.0.1",
    ]  # fmt: skip
    assert names.address("2001:db8::1", 1) == "[2001:db8::1]:1"


# -- add and renew


def test_added_nodes_join_the_rest(federation: Path) -> None:
    run_config = federation / "server" / "federation.toml"
    text = run_config.read_text("utf-8")
    run_config.write_text(text + 'strategy = "fedadam"  # ours\n', "utf-8")
    shutil.rmtree(federation / "nodes" / "germany")  # handed over
    result = invoke("add", federation, "--groups", 'Germany?;New = "1" # \\', "--unseen", "日")
    assert result.exit_code == 0, result.output

    values = tomllib.loads(run_config.read_text("utf-8"))
    config = RunConfig.default(values)
    assert config.seen == (*SEEN, "Germany?", 'New = "1" # \\')
    assert config.unseen == (*UNSEEN, "日")
    assert (config.expected_nodes, config.min_nodes) == (7, 5)
    before = {line for line in text.splitlines() if "groups" not in line and "nodes" not in line}
    assert before <= set(run_config.read_text("utf-8").splitlines())
    assert config.strategy == "fedadam"

    new = {"germany-2", "new-1", "group-2"}
    assert {p.stem for p in (federation / "server" / "keys").iterdir()} == SLUGS | new
    settings_of = {
        slug: dict(
            re.findall(
                r"(?m)^(\w+)=(.*)$", (federation / f"nodes/{slug}/node.env").read_text("utf-8")
            )
        )
        for slug in (SLUGS | new) - {"germany"}
    }
    assert len({values["RUNTIME_PORT"] for values in settings_of.values()}) == len(settings_of)
    assert {values["SUPERLINK"] for values in settings_of.values()} == {"fed.example.org:8443"}
    assert settings_of["group-2"]["ROLE"] == "evaluate"
    test_nobody_else_reads_anything(federation)


def test_a_chosen_number_of_nodes_stays(federation: Path) -> None:
    run_config = federation / "server" / "federation.toml"
    run_config.write_text(re.sub("min-nodes = 3", "min-nodes = 2", run_config.read_text("utf-8")))
    assert invoke("add", federation, "--groups", "D").exit_code == 0
    assert tomllib.loads(run_config.read_text("utf-8"))["min-nodes"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--groups", "Germany"), "Group 'Germany' is there twice"),
        (("--unseen", "Germany"), "Group 'Germany' is there twice"),
        ((), "Name the new groups"),
    ],
)
def test_refused_additions_change_nothing(
    federation: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = {path: path.read_bytes() for path in files(federation)}
    result = invoke("add", federation, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert {path: path.read_bytes() for path in files(federation)} == before


def test_a_run_config_of_unknown_form_is_left_alone(federation: Path) -> None:
    run_config = federation / "server" / "federation.toml"
    text = re.sub(
        "seen-groups = .*", 'seen-groups = """A"""', run_config.read_text("utf-8"), count=1
    )
    run_config.write_text(text)
    before = {path: path.read_bytes() for path in files(federation)}
    result = invoke("add", federation, "--groups", "D")
    assert result.exit_code == 1
    assert "Set in it by hand" in result.output or "no valid TOML" in result.output
    assert {path: path.read_bytes() for path in files(federation)} == before


def test_add_and_renew_want_a_federation(tmp_path: Path) -> None:
    for command in (("add", tmp_path, "--groups", "D"), ("renew", tmp_path)):
        result = invoke(*command)
        assert result.exit_code == 1
        assert "Give the folder that pluralllm deploy init wrote" in result.output


def test_a_renewed_certificate_differs_in_time_alone(federation: Path) -> None:
    path = federation / "server" / "server.crt"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    assert invoke("renew", federation, "--years", "3").exit_code == 0
    new = x509.load_pem_x509_certificate(path.read_bytes())
    assert new.not_valid_after_utc - old.not_valid_after_utc > datetime.timedelta(days=729)
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert [e.value for e in new.extensions] == [e.value for e in old.extensions]
    new.verify_directly_issued_by(
        x509.load_pem_x509_certificate((federation / "ca/ca.crt").read_bytes())
    )
    test_nobody_else_reads_anything(federation)


def test_renewing_needs_the_authority(federation: Path) -> None:
    shutil.rmtree(federation / "ca")
    result = invoke("renew", federation)
    assert result.exit_code == 1
    assert "ca.crt is missing. Bring the authority's folder back" in result.output
