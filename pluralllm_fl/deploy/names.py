"""What the user calls groups and servers, checked; and folder names made of them."""

import ipaddress
import re
import unicodedata
from collections.abc import Collection, Iterable

from pluralllm_fl.config import split_names
from pluralllm_fl.errors import ConfigError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SLUG_LENGTH = 40


def groups(seen: str, unseen: str, taken: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Split ``"A;B"`` lists into the names that train and those that are only evaluated.

    Raises
    ------
    ConfigError
        For names given twice (or taken), and for names that no node could be started with.
    """
    lists = list(split_names(seen)), list(split_names(unseen))
    known = set(taken)
    for name in lists[0] + lists[1]:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ConfigError(f"Group {name!r}: names must not hold control characters.")
        if name in known:
            raise ConfigError(f"Group '{name}' is there twice: one node holds one group.")
        known.add(name)
    return lists


def hosts(text: str) -> list[str]:
    """Split ``"HOST;HOST2"`` into DNS names and IP addresses in their usual form.

    Raises
    ------
    ConfigError
        For a name with a port or scheme, and for whatever no node could reach.
    """
    found = list(dict.fromkeys(_host(name) for name in split_names(text)))
    if not found:
        raise ConfigError("--server is empty: give the name or address that nodes connect to.")
    return found


def address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def slugs(names: Iterable[str], taken: Collection[str] = ()) -> list[str]:
    """Return one new folder name per name: lower-case ASCII letters, digits and hyphens."""
    found: list[str] = []
    used = set(taken)
    for name in names:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-") or "group"
        slug, number = stem, 2
        while slug in used:
            slug, number = f"{stem}-{number}", number + 1
        used.add(slug)
        found.append(slug)
    return found


def _host(text: str) -> str:
    try:
        ip = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return _domain(text)
    if ip.is_unspecified or "%" in str(ip):
        raise ConfigError(f"--server {text}: nodes cannot connect to it; give a full address.")
    return str(ip)


def _domain(text: str) -> str:
    try:
        name = text.encode("idna").decode().lower().removesuffix(".")
    except UnicodeError:
        name = ""
    labels = name.split(".")
    valid = all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()
    if not valid or len(name) > 253:
        raise ConfigError(
            f"--server {text}: neither a DNS name nor an IP address. Leave scheme and port out "
            "(--port); several names are separated by semicolons."
        )
    return name
