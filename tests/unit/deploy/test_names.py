"""Folder names of groups, and hosts."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pluralllm_fl.deploy import names
from tests.unit.deploy.federation import GROUP_NAMES


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
