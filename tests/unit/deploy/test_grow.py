"""deploy add and renew."""

import datetime
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from pluralllm_fl.config import RunConfig
from tests.unit.deploy.federation import SEEN, SLUGS, UNSEEN, assert_private, deploy, files


def test_added_nodes_join_the_rest(federation: Path) -> None:
    run_config = federation / "server" / "federation.toml"
    text = run_config.read_text("utf-8")
    run_config.write_text(text + 'strategy = "fedadam"  # ours\n', "utf-8")
    shutil.rmtree(federation / "nodes" / "germany")  # handed over
    result = deploy("add", federation, "--groups", 'Germany?;New = "1" # \\', "--unseen", "日")
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
    assert_private(federation)


def test_a_chosen_number_of_nodes_stays(federation: Path) -> None:
    run_config = federation / "server" / "federation.toml"
    run_config.write_text(re.sub("min-nodes = 3", "min-nodes = 2", run_config.read_text("utf-8")))
    assert deploy("add", federation, "--groups", "D").exit_code == 0
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
    result = deploy("add", federation, *arguments)
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
    result = deploy("add", federation, "--groups", "D")
    assert result.exit_code == 1
    assert "Set in it by hand" in result.output or "no valid TOML" in result.output
    assert {path: path.read_bytes() for path in files(federation)} == before


def test_add_and_renew_want_a_federation(tmp_path: Path) -> None:
    for command in (("add", tmp_path, "--groups", "D"), ("renew", tmp_path)):
        result = deploy(*command)
        assert result.exit_code == 1
        assert "Give the folder that pluralllm deploy init wrote" in result.output


def test_a_renewed_certificate_differs_in_time_alone(federation: Path) -> None:
    path = federation / "server" / "server.crt"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    assert deploy("renew", federation, "--years", "3").exit_code == 0
    new = x509.load_pem_x509_certificate(path.read_bytes())
    assert new.not_valid_after_utc - old.not_valid_after_utc > datetime.timedelta(days=729)
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert [e.value for e in new.extensions] == [e.value for e in old.extensions]
    new.verify_directly_issued_by(
        x509.load_pem_x509_certificate((federation / "ca/ca.crt").read_bytes())
    )
    assert_private(federation)


def test_renewing_needs_the_authority(federation: Path) -> None:
    shutil.rmtree(federation / "ca")
    result = deploy("renew", federation)
    assert result.exit_code == 1
    assert "ca.crt is missing. Bring the authority's folder back" in result.output
