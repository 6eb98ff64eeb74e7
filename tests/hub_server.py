"""A small Hub on 127.0.0.1 that serves folders through the routes that huggingface_hub's own client asks for."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

_API = re.compile(r"^/api/(models|datasets)/(?P<repo>.+?)(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+))?$")
_FILE = re.compile(r"^/(?P<kind>datasets/)?(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


class HubServer:
    """Serves `root/models/NAME` and `root/datasets/NAME`; `requests` lists every path asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.commits: dict[str, str] = {}  # of copies of real repositories; the others' are made up
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def folder(self, kind: str, repo: str) -> Path:
        return self.root / kind / repo

    def revision(self, kind: str, repo: str) -> str:
        """Return the repository's commit: the one it was given, or a hash of its files."""
        if repo in self.commits:
            return self.commits[repo]
        files = sorted(file for file in self.folder(kind, repo).rglob("*") if file.is_file())
        content = b"".join(file.name.encode() + file.read_bytes() for file in files)
        return hashlib.sha1(content).hexdigest()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def log_message(self, *_: Any) -> None:
                return

            def _answer(self, with_body: bool) -> None:
                path = unquote(urlparse(self.path).path)
                hub.requests.append(path)
                if found := _API.match(path):
                    self._api(found, with_body)
                elif found := _FILE.match(path):
                    self._file(found, with_body)
                else:
                    self._send(404, b"", with_body)

            def _api(self, found: re.Match[str], with_body: bool) -> None:
                kind, repo = found[1], found["repo"]
                folder = hub.folder(kind, repo)
                if not folder.is_dir():
                    self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
                    return
                commit = hub.revision(kind, repo)
                if found["revision"] not in (None, "main", commit):
                    self._send(404, b"{}", with_body, {"X-Error-Code": "RevisionNotFound"})
                    return
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                names = [file.relative_to(folder).as_posix() for file in files]
                answer: Any = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
                if found["verb"] == "tree":
                    answer = [
                        {"type": "file", "oid": _etag(file), "size": file.stat().st_size, "path": name}
                        for file, name in zip(files, names, strict=True)
                    ]
                self._send(200, json.dumps(answer).encode(), with_body, {"Content-Type": "application/json"})

            def _file(self, found: re.Match[str], with_body: bool) -> None:
                kind = "datasets" if found["kind"] else "models"
                file = hub.folder(kind, found["repo"]) / found["path"]
                if not file.is_file():
                    self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
                    return
                headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": hub.revision(kind, found["repo"])}
                self._send(200, file.read_bytes(), with_body, headers)

            def _send(self, code: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        return Handler


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
