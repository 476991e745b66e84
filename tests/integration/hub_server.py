"""A hub of one process: the few calls with which huggingface_hub sends and fetches a model."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories in memory: id -> file -> content; every request is noted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "id": name, "name": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif commit := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[commit[1]][line["value"]["path"]] = content
            oid = self._oid(commit[1])
            url = f"{self.server.url}/{commit[1]}/commit/{oid}"
            self._json({"commitUrl": url, "commitOid": oid, "success": True})
        else:
            self._json({"error": self.path}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if info := re.fullmatch(r"/api/models/(.+?)/(revision|tree)/\w+", path):
            files = self.server.repositories.get(info[1])
            if files is None:
                self._json({"error": "Repository not found"}, 404)
            elif info[2] == "tree":
                self._json([
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ])  # fmt: skip
            else:
                names = [{"rfilename": name} for name in files]
                self._json({"id": info[1], "sha": self._oid(info[1]), "siblings": names})
        elif file := re.fullmatch(r"/(.+)/resolve/\w+/(.+)", path):
            content = self.server.repositories[file[1]][file[2]]
            self._send(content, {"X-Repo-Commit": self._oid(file[1])})
            if self.command == "GET":
                self.server.fetched.append(file[2])
        else:
            self._json({"error": path}, 404)

    do_HEAD = do_GET  # noqa: N815

    def _oid(self, name: str) -> str:
        files = sorted(self.server.repositories[name].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of loopback."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
