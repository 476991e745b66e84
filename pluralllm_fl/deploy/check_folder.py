"""The handed-over folder: settings, key, room for the node's state."""

import base64
import getpass
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from pluralllm_fl.deploy.findings import Finding
from pluralllm_fl.deploy.names import address
from pluralllm_fl.errors import nearest

REQUIRED = ("DATASET_PATH", "GROUP", "ROLE", "SUPERLINK", "RUNTIME_PORT")
LITTLE_ROOM = 10**9  # bytes
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_QUOTED = re.compile(r"""'[^']*'|("(?:\\.|[^"\\])*")|\\.""")
_EXPANDED = re.compile(r"[$`]|=~")
_HOST = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the SuperLink is to be found.

    Parameters
    ----------
    host : str
        Name or IP address, IPv6 without brackets.
    port : int
    """

    host: str
    port: int

    def __str__(self) -> str:
        return address(self.host, self.port)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``host:port`` (IPv6: ``[address]:port``).

        Raises
        ------
        ValueError
            Saying what is wrong with it.
        """
        if "://" in text:
            raise ValueError("it begins with a scheme: write host:port alone")
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port):
            raise ValueError("it does not end in a port: write host:port, e.g. example.org:8443")
        if not _HOST.fullmatch(host):
            raise ValueError("the part before the port is no host name; IPv6 goes in [brackets]")
        if not 1 <= int(port) <= 65535:
            raise ValueError("ports go from 1 to 65535")
        return cls(host.strip("[]"), int(port))


def read_settings(folder: Path) -> tuple[dict[str, str], list[Finding]]:
    """Read node.env as a shell would, without executing anything.

    Returns
    -------
    settings : dict of str to str
        Without empty and invalid ones.
    findings : list of Finding
    """
    step, path = "Settings", folder / "node.env"
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        remedy = "Run this in the folder that the operator handed over for this node."
        return {}, [Finding(step, "wrong", f"There is no {path}.", remedy)]
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}."
        return {}, [Finding(step, "wrong", message, "Run as the user that owns it.")]
    except UnicodeDecodeError:
        return {}, [Finding(step, "wrong", "node.env is not UTF-8 text.", "Save it as UTF-8.")]
    if "\r" in text or text.startswith("\ufeff"):
        message = "node.env has Windows line ends or a byte-order mark, which a shell misreads."
        return {}, [Finding(step, "wrong", message, "Save it with Unix line ends, as plain UTF-8.")]
    values, problems = parse_settings(text)
    problems += [problem for key in REQUIRED if (problem := _missing(key, values, text))]
    usable = {key: value for key, value in values.items() if value}
    for key in (*REQUIRED, "REWARD_ANSWERS"):
        if key in usable and (reason := _invalid(key, usable[key])):
            problems.append(f"{key}={shlex.quote(usable.pop(key))}: {reason}.")
    if problems:
        remedy = "Edit node.env."
        return usable, [Finding(step, "wrong", f"node.env: {p}", remedy) for p in problems]
    summary = f"group '{usable['GROUP']}', role {usable['ROLE']}, server {usable['SUPERLINK']}"
    return usable, [Finding(step, "ok", f"node.env: {summary}.")]


def parse_settings(text: str) -> tuple[dict[str, str], list[str]]:
    """Parse lines of ``KEY=value`` in shell syntax.

    Returns
    -------
    values : dict of str to str
    problems : list of str
        One sentence for each line that a shell would not take as a plain assignment.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            found = _assignment(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}.")
            continue
        if found is None:
            continue
        key, value = found
        if key in values:
            problems.append(f"line {number}: {key} is set a second time; keep one.")
        values[key] = value
    return values, problems


def _assignment(line: str) -> tuple[str, str] | None:
    """Return (key, value) of one line; None for blank lines and comments."""
    bare = line.strip()
    if not bare or bare.startswith("#"):
        return None
    words = _words(bare)
    if words[0] == "export" and len(words) > 1:
        words = words[1:]
    match = _ASSIGNMENT.fullmatch(words[0])
    if match is None:
        raise ValueError("not of the form KEY=value, without spaces around '='")
    if len(words) > 1:
        raise ValueError(f"the value of {match[1]} holds spaces or one of ;&|<>(): put it in '…'")
    if _EXPANDED.search(re.split(r"\s#", _QUOTED.sub(_expandable, bare))[0]):
        raise ValueError(f"the value of {match[1]} holds $, ` or ~: write it out, in '…'")
    return match[1], match[2]


def _expandable(quoted: re.Match[str]) -> str:
    """Return what a shell would still expand in a quoted part."""
    return "".join(re.findall(r"[$`]", quoted[1] or ""))


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""  # shlex would end a word at '#', a shell does not
    words: list[str] = []
    try:
        while (word := lexer.get_token()) is not None and not (words and word.startswith("#")):
            words.append(word)
    except ValueError:
        raise ValueError("a quotation mark is not closed") from None
    return words


def _missing(key: str, values: Mapping[str, str], text: str) -> str:
    """Say that a setting is missing; empty when it is there, or in a line that is named already."""
    if key in values:
        return "" if values[key] else f"{key} is empty."
    if re.search(rf"(?m)^\s*(export\s+)?{key}\b", text):
        return ""
    return f"{key} is missing.{nearest(key, [name for name in values if name not in REQUIRED])}"


def _invalid(key: str, value: str) -> str:
    """Say what is wrong with a setting; empty when nothing is."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        return "it holds control characters"
    if key == "GROUP" and (";" in value or value != value.strip()):
        return "a group's name has no ';' and no spaces at its ends"
    if key == "ROLE" and value not in ("train", "evaluate"):
        return "must be train or evaluate"
    if key == "REWARD_ANSWERS" and not (value.isascii() and value.isdecimal()):
        return "must be a number of answers; 0: no rewards"
    if key == "RUNTIME_PORT" and not (value.isdecimal() and 1 <= int(value) <= 65535):
        return "must be a port, 1 to 65535"
    if key == "SUPERLINK":
        try:
            Address.parse(value)
        except ValueError as error:
            return str(error)
    return ""


def check_programs(settings: Mapping[str, str]) -> list[Finding]:
    """Check that supernode.sh will find Flower's program."""
    venv = settings.get("VENV", "")
    folders = [str(Path(venv) / "bin")] if venv else []
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    if found := shutil.which("flower-supernode", path=path):
        return [Finding("Programs", "ok", f"{found} is there.")]
    where = f"neither in {folders[0]} nor in PATH" if folders else "not in PATH"
    remedy = "Write the path of the Python environment with PluralLLM-FL into node.env as VENV."
    return [Finding("Programs", "wrong", f"flower-supernode is {where}.", remedy)]


def check_key(folder: Path) -> tuple[ec.EllipticCurvePrivateKey | None, list[Finding]]:
    """Check that node.key is private, usable by Flower and the other half of node.pub."""
    step, path = "Key", folder / "node.key"
    again = "Ask the operator for this node's folder again."
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except FileNotFoundError:
        return None, [Finding(step, "wrong", f"There is no {path}.", again)]
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}."
        return None, [Finding(step, "wrong", message, "Run as the user that owns it.")]
    findings = []
    if mode & 0o177:  # what supernode.sh refuses
        message = f"node.key has mode {mode & 0o777:04o}: others may read it, or it is a program."
        findings.append(Finding(step, "wrong", message, f"chmod 600 {shlex.quote(str(path))}"))
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        message = "node.key is damaged, or no OpenSSH private key (ECDSA, without a passphrase)."
        return None, [*findings, Finding(step, "wrong", message, again)]
    if problem := _differs(folder / "node.pub", key):
        findings.append(Finding(step, "wrong", problem, again))
    if not findings:
        message = f"node.key is private and belongs to node.pub ({fingerprint(key)})."
        findings.append(Finding(step, "ok", message))
    return key, findings


def _differs(path: Path, key: ec.EllipticCurvePrivateKey) -> str:
    try:
        public = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    except (ValueError, UnsupportedAlgorithm):
        return "node.pub is damaged, or no OpenSSH public key."
    if public != key.public_key():
        return "node.key and node.pub are of different pairs: they must come from one folder."
    return ""


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public key's fingerprint as ``ssh-keygen -l`` shows it."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def check_room(folder: Path) -> list[Finding]:
    """Check that the node can keep its state here."""
    step, state = "Room", folder / "state"
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=state) as file:
            file.write(b"0" * 4096)
        free, status = shutil.disk_usage(state).free, folder.stat()
    except OSError as error:
        message = f"{state} cannot be written: {error.strerror}."
        remedy = "Make room on the disk, or give this folder to the user that runs the node."
        return [Finding(step, "wrong", message, remedy)]
    findings = []
    if status.st_mode & 0o077:
        message = "Other users of this machine may look into this folder."
        remedy = f"chmod -R go= {shlex.quote(str(folder))}"
        findings.append(Finding(step, "warning", message, remedy))
    if status.st_uid != os.geteuid():
        message = f"This folder belongs to another user than {getpass.getuser()}."
        remedy = "Run this check and the node as the folder's owner, or each locks the other out."
        findings.append(Finding(step, "warning", message, remedy))
    amount = f"{free / 1e9:.1f} GB free for the node's state"
    if free < LITTLE_ROOM:
        remedy = "Make room: embeddings, models and logs take up to 1 GB."
        return [*findings, Finding(step, "warning", f"Only {amount}.", remedy)]
    return findings or [Finding(step, "ok", f"The folder can be written; {amount}.")]
