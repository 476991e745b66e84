"""The deploy commands: a federation on many machines."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm_fl.cli.console import FAILURE, guarded, labelled, output, print_json, require_unix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pluralllm_fl.deploy.layout import NodePlan

deploy = typer.Typer(help="Run a federation on many machines.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder.")]
Years = Annotated[int, typer.Option(min=1, max=30, help="Validity of the server's certificate.")]
Unseen = Annotated[str, typer.Option(metavar='"C;D;…"', help="Groups that are only evaluated.")]


@deploy.command()
@guarded
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder, outside of git.")],
    groups: Annotated[str, typer.Option(metavar='"A;B;…"', help="Groups that train.")],
    server: Annotated[
        str,
        typer.Option(
            metavar='"HOST;…"', help="The server's names and addresses; nodes use the first."
        ),
    ],
    unseen: Unseen = "",
    port: Annotated[int, typer.Option(min=1024, max=65534, help="Public port.")] = 8443,
    years: Years = 2,
) -> None:
    """Write keys, certificates, scripts and settings for the server and every node."""
    require_unix()
    from pluralllm_fl.deploy.layout import create

    nodes = create(folder, seen=groups, unseen=unseen, servers=server, port=port, years=years)
    console, home = output(), shlex.quote(str(folder))
    _show(nodes)
    console.print()
    labelled(
        console,
        "server",
        f"cd {home}/server",
        "./superlink.sh  in a terminal of its own",
        "./gateway.sh    in another; needs nginx",
        "./register.sh   lets the nodes in",
    )
    labelled(console, "nodes", f"hand over {home}/nodes/*, each with its CHECKLIST.md")
    labelled(console, "run", "./run.sh, once the nodes are up; settings: federation.toml")
    labelled(console, "secrets", f"*.key files. Move {home}/ca off this machine.")
    labelled(console, "more", f"{home}/README.md")


@deploy.command()
@guarded
def add(
    folder: Folder,
    groups: Annotated[str, typer.Option(metavar='"D;E;…"', help="New groups that train.")] = "",
    unseen: Unseen = "",
) -> None:
    """Add nodes to a federation."""
    require_unix()
    from pluralllm_fl.deploy.grow import add as add_nodes

    nodes = add_nodes(folder, seen=groups, unseen=unseen)
    console, home = output(), shlex.quote(str(folder))
    _show(nodes)
    console.print()
    labelled(
        console,
        "next",
        f"{home}/server/register.sh lets them in",
        f"hand over their folders in {home}/nodes",
        "the next run expects them (server/federation.toml)",
    )


@deploy.command()
@guarded
def renew(folder: Folder, years: Years = 2) -> None:
    """Sign the server's certificate again; nodes need nothing new."""
    from pluralllm_fl.deploy.grow import renew as renew_certificate

    until = renew_certificate(folder, years)
    console = output()
    labelled(console, "renewed", f"server/server.crt is valid until {until}")
    labelled(console, "next", "start gateway.sh and superlink.sh again")


@deploy.command()
@guarded
def check(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="NODE_DIR", help="This node's folder.", exists=True, file_okay=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Test on a node's machine whether the node can run: data, server, certificate, key."""
    require_unix()
    from pluralllm_fl.cli.findings import as_document, show

    # Where supernode.sh keeps a language model, should it have to be fetched.
    os.environ.setdefault("HF_HOME", str(folder.absolute() / "state" / "huggingface"))
    from pluralllm_fl.deploy.check import check_node

    if as_json:
        findings = list(check_node(folder))
        print_json(as_document(findings))
    else:
        findings = show(check_node, folder)
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(FAILURE)


def _show(nodes: "Sequence[NodePlan]") -> None:
    width = max(len(node.slug) for node in nodes)
    lines = [f"nodes/{node.slug:<{width}}  {node.group} ({node.role})" for node in nodes]
    labelled(output(), "new", *lines)
