"""What a resumed run must keep of the run that it continues: settings, nodes and data."""

from typing import Any

from pluralllm_fl.config import RunConfig, split_names
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.federation.roster import Roster
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.checkpoint import Checkpoint
from pluralllm_fl.workspace import for_nodes, is_elastic

# What a resumed run may change: nothing here touches the result of a round already done.
FREE_ON_RESUME = frozenset(
    {
        "num-server-rounds", "output-dir", "run-name", "resume", "threads", "device",
        "join-timeout", "round-timeout", "round-retries", "checkpoint-every", "trackers",
        "embedding-cache", "expected-nodes", "min-nodes", "max-update-norm", "max-update-ratio",
        "node-keys",
    }
)  # fmt: skip


def checkpoint_of(directory: RunDirectory, config: RunConfig) -> Checkpoint:
    """Return where a run goes on.

    Raises
    ------
    ConfigError
        For settings that it must keep, or fewer rounds than it has completed.
    """
    stored, given = directory.run.config, config.to_run_config()
    free = FREE_ON_RESUME | _grown(directory, config)
    changed = sorted(key for key in given if key not in free and given[key] != stored.get(key))
    if changed:
        listed = ", ".join(f"{k} = {given[k]!r} (was {stored.get(k)!r})" for k in changed)
        raise ConfigError(
            f"A resumed run keeps its settings, but {listed}. Run: "
            f"flwr run . --run-config {directory.path / 'resume.toml'}"
        )
    start = checkpoint.read(checkpoint.newest(directory.checkpoints))
    done = start.progress.round
    if config.num_server_rounds < done:
        raise ConfigError(
            f"num-server-rounds = {config.num_server_rounds}: the run already completed {done}."
        )
    return start


def _grown(directory: RunDirectory, config: RunConfig) -> set[str]:
    """Return the lists of groups that a deployed federation made longer since the run began."""
    if directory.run.mode != "deployment":
        return set()
    stored = directory.run.config
    lists = {"seen-groups": config.seen, "unseen-groups": config.unseen}
    return {
        key for key, names in lists.items()
        if isinstance(stored.get(key), str) and {*split_names(stored[key])} <= {*names}
    }  # fmt: skip


def facts(config: RunConfig, roster: Roster) -> dict[str, Any]:
    """Return what run.json says of the nodes and their data."""
    dataset: dict[str, Any] = {
        "name": config.dataset if roster.simulated else "each node's own",
        "fingerprint": roster.fingerprint,
        "groups": {node.group: node.questions for node in roster.nodes},
    }
    if roster.simulated and is_elastic(config):  # with fewer nodes not all of its groups take part
        dataset["generated"] = for_nodes(config, len(roster.nodes)).synthetic_groups
    return {
        "dataset": dataset,
        "embedding": roster.embedding,
        "mode": "simulation" if roster.simulated else "deployment",
        "seen": roster.seen,
        "unseen": roster.unseen,
    }


def require_same(directory: RunDirectory, roster: Roster, config: RunConfig) -> None:
    """Refuse another federation (ConfigError); a deployed one may have grown."""
    run = directory.run
    known = {*run.seen, *run.unseen}
    nodes = [node for node in roster.nodes if roster.simulated or node.group in known]
    found = facts(config, Roster(nodes))
    for key, before in (("seen", run.seen), ("unseen", run.unseen)):
        if before != found[key]:
            raise ConfigError(
                f"{key}-groups: the run had {', '.join(before)}; now there are "
                f"{', '.join(found[key])}. A resumed run needs the same groups."
            )
    if (model := run.embedding or roster.embedding) != roster.embedding:
        raise ConfigError(
            f"embedding-model: the run began with another language model ({model[:12]}, now "
            f"{roster.embedding[:12]}). Resume with the same model and version of pluralllm-fl."
        )
    # Earlier versions do not say how large a generated survey was.
    dataset = {k: v for k, v in found["dataset"].items() if k != "generated" or k in run.dataset}
    if run.dataset != dataset:
        raise ConfigError(
            f"dataset = '{dataset['name']}': the nodes' data are not those that the "
            "run began with (other fingerprint). Resume with the same data or start a new run."
        )
