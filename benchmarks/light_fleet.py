"""A deployment's server, and light nodes for it: threads that answer messages and train nothing.

Server and gateway are those that `pluralllm deploy init` writes; a light node speaks through
Flower's own connection of a SuperNode, so that every request is a real one.
"""

import contextlib
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from flwr.app import Message, MessageType, RecordDict
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_connection import http_request_response

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.config import Value, app_directory
from pluralllm_fl.evaluation.scores import EVALUATION_SPLITS, SplitScore
from pluralllm_fl.processes.flower import FlowerConnection
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.messages import (
    ARRAYS,
    METRICS,
    Introduction,
    Order,
    TrainingReport,
    score_record,
    trained,
)
from pluralllm_fl.wire.packing import packed, unpacked
from pluralllm_fl.wire.records import to_arrays, to_record

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
DIMENSION = 2 * 384  # of a row: MiniLM's vectors of question and option
POLL_SECONDS = 3.0  # a SuperNode's
Keys = tuple[Any, Any]
SCORES = dict.fromkeys(EVALUATION_SPLITS, SplitScore(0.8, 0.8, 0.7, 0.9, 0.7, 10))


class Server:
    """SuperLink and gateway as `pluralllm deploy init` writes them; a context manager.

    Parameters
    ----------
    folder : Path
        Receives the federation's folder and the programs' logs.
    group : str
        The one real node that the folder is for.
    """

    def __init__(self, folder: Path, group: str) -> None:
        self.logs, self.folder = folder, folder / "fed"
        self.port = random.randrange(20_000, 30_000)
        self.update_dtype = "float32"
        self.programs: list[psutil.Popen] = []
        pluralllm = Path(sys.executable).with_name("pluralllm")
        self.environment = {
            **os.environ,
            **QUIET,
            "PYTHONPATH": str(Path(__file__).parent),
            "PATH": f"{pluralllm.parent}:{os.environ['PATH']}",
        }
        command = [str(pluralllm), "deploy", "init", str(self.folder), "--groups", group]
        command += ["--server", "localhost", "--port", str(self.port)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for settings in self.folder.glob("*/**/*.env"):
            text = re.sub("VENV=.*", f"VENV={sys.prefix}", settings.read_text())
            settings.write_text(text)
        # The light nodes share one address; the gateway's limits are for one organisation's.
        gateway = self.folder / "server" / "nginx.conf"
        text = gateway.read_text().replace("rate=200r/s", "rate=100000r/s")
        gateway.write_text(
            text.replace("limit_conn connections 256", "limit_conn connections 4000")
        )
        self.trusted = (self.folder / "ca" / "ca.crt").read_bytes()

    def __enter__(self) -> "Server":
        self.start(self.folder / "server" / "superlink.sh")
        self.gateway = self.start(self.folder / "server" / "gateway.sh")
        deadline = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > deadline:
                self.__exit__()
                raise SystemExit(f"the server does not start: see {self.logs}")
            time.sleep(0.5)
        self.superlink = named(self.processes(), "flower-superlink")[0]
        return self

    def __exit__(self, *_: object) -> None:
        running = self.processes()
        for process in running:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        for process in psutil.wait_procs(running, timeout=10)[1]:
            process.kill()

    def start(self, script: Path) -> psutil.Process:
        """Start a script; return its process."""
        with (self.logs / f"{script.stem}.log").open("wb") as log:
            self.programs.append(
                psutil.Popen([script], stdout=log, stderr=log, env=self.environment)
            )
        return psutil.Process(self.programs[-1].pid)

    def processes(self) -> list[psutil.Process]:
        """Return all that was started and still runs."""
        found = []
        for program in self.programs:
            with contextlib.suppress(psutil.Error):
                top = psutil.Process(program.pid)
                found += [top, *top.children(recursive=True)]
        return found

    def register(self, keys: list[Keys]) -> None:
        """Let nodes in, as `flwr supernode register` does."""
        address = f"127.0.0.1:{self.port + 1}"
        with ControlHttpClient.from_server_address(address, False, self.trusted, []) as control:
            for _, public in keys:
                control.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(public)))

    def run(self, app: Path, config: Mapping[str, Value]) -> None:
        """Start a run of a Flower app."""
        FlowerConnection("federation", self.folder / "server" / "flwr").start(app, config)

    def federate(self, name: str, **settings: Any) -> Path:
        """Start a run of the real ServerApp; return its directory."""
        config = {
            "run-name": name,
            "output-dir": str(self.folder / "runs"),
            "evaluate-every": 1000,
            **{key.replace("_", "-"): value for key, value in settings.items()},
        }
        self.update_dtype = str(config.get("update-dtype", self.update_dtype))
        self.run(app_directory(), config)
        return self.folder / "runs" / name

    def members(self) -> dict[str, list[psutil.Process]]:
        """Return the server's processes by what they are."""
        return {
            "superlink": [self.superlink],
            "gateway": [self.gateway, *self.gateway.children()],
            "serverapp": named(self.processes(), "flwr-serverapp")[:1],
        }

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time so far by kind of process."""
        return {name: cpu_seconds(*members) for name, members in self.members().items()}

    def memory_mb(self) -> dict[str, float]:
        """Return the resident memory by kind of process."""
        found: dict[str, float] = {}
        for name, members in self.members().items():
            found[f"{name}_mb"] = 0.0
            for process in members:
                with contextlib.suppress(psutil.Error):
                    found[f"{name}_mb"] += process.memory_info().rss / 1e6
        return found

    @property
    def database_mb(self) -> float:
        """Size of the database's files."""
        state = self.folder / "server" / "state"
        return sum(path.stat().st_size for path in state.glob("superlink.db*")) / 1e6

    @property
    def database_used_mb(self) -> float:
        """Size of what the database holds: pages that are free again do not count."""
        path = self.folder / "server" / "state" / "superlink.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            pages, free, page = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return float((pages - free) * page / 1e6)

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):
            self.register([generate_key_pairs()])
            return True
        return False


def named(processes: list[psutil.Process], word: str) -> list[psutil.Process]:
    """Return those whose command has the word, the newest first."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if any(word in part for part in process.cmdline()[:3]):
                found.append(process)
    return sorted(found, key=lambda process: -process.create_time())


def cpu_seconds(*processes: psutil.Process) -> float:
    """Return the CPU time of processes, and of their children that ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


@dataclass
class Traffic:
    """What light nodes saw: how long polls without a message took (s), and lost connections."""

    polls: list[float] = field(default_factory=list)
    lost: int = 0


@contextlib.contextmanager
def light_nodes(server: Server, keys: list[Keys], *, polling: bool = True) -> Iterator[Traffic]:
    """Keep nodes online; without polling they are, but take no messages."""
    stop, online, traffic = threading.Event(), [threading.Event() for _ in keys], Traffic()
    threads = [
        threading.Thread(target=_live, args=(server, *each, stop, traffic, polling), daemon=True)
        for each in zip(keys, range(len(keys)), online, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        if not all(event.wait(120) for event in online):
            raise SystemExit("the light nodes cannot connect")
        yield traffic
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def _live(
    server: Server,
    keys: Keys,
    number: int,
    online: threading.Event,
    stop: threading.Event,
    traffic: Traffic,
    polling: bool,
) -> None:
    """Be online; after an error of the server, which ends a SuperNode, start again."""
    address = f"localhost:{server.port}"
    while not stop.is_set():
        with http_request_response(address, False, server.trusted, keys) as connection:
            online.set()
            stop.wait(random.uniform(0, POLL_SECONDS) if polling else None)
            while not stop.is_set():
                start = time.monotonic()
                if not _serve(connection, number, server.update_dtype):
                    traffic.polls.append(time.monotonic() - start)
                    stop.wait(POLL_SECONDS)
        traffic.lost += not stop.is_set()


def _serve(connection: tuple[Any, ...], number: int, dtype: str) -> bool:
    """Take a message and answer it at once; False if there is none."""
    _, receive, send, _, _, pull, push, confirm = connection
    received = receive()
    if received is None:
        return False
    message, tree = received
    run, name = message.metadata.run_id, message.metadata.message_id
    ids = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
    contents = pull_objects(ids, partial(pull, run))
    confirm(run, name)
    whole = inflate_object_from_contents(name, contents)
    assert isinstance(whole, Message)
    reply = Message(packed(_answer(whole, number, dtype)), reply_to=message)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
    wanted, session = send(reply, tree, 0.0)
    push_objects(objects, partial(push, run, session), object_ids_to_push=wanted)
    return True


def _answer(message: Message, number: int, dtype: str) -> RecordDict:
    """Return what a node would answer: of the right size, and different from all others'."""
    if message.metadata.message_type == MessageType.QUERY:
        return Introduction(
            group=f"group {number:04d}", role="train", dimension=DIMENSION, embedding="none",
            device="cpu", dtype="float32", groups=0, supernodes=0, fingerprint=str(number),
            questions=100, train_questions=80,
        ).records()  # fmt: skip
    if message.metadata.message_type == MessageType.EVALUATE:
        return RecordDict({METRICS: score_record(SCORES)})
    content = unpacked(message.content)
    received = to_arrays(content.array_records[ARRAYS])
    arrays = moved(received, 1e-6 * number)
    if dtype != "float32":
        arrays = rounding.encode(arrays, received)
    scores = SCORES if Order.parse(content).evaluate else None
    return trained(to_record(arrays), TrainingReport(1.0, 1.0, 80, 0.0), scores)


def moved(arrays: Arrays, distance: float) -> Arrays:
    """Return the arrays with every value larger by a distance."""
    return {
        name: np.asarray(value.astype(np.float64) + distance, value.dtype)
        for name, value in arrays.items()
    }


def rounds(run: Path) -> list[dict[str, Any]]:
    """Return the round events of a run so far; end the benchmark if it failed."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        events = [json.loads(line) for line in lines]
        if any(e["event"] == "run_finished" and e["status"] == "failed" for e in events):
            raise SystemExit(f"{run.name} failed: {events[-1]['error']}")
        return [event for event in events if event["event"] == "round"]
    return []
