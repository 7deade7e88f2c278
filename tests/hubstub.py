"""A stand-in for the Hub on the loopback: enough of its protocol for huggingface_hub's own client, and faults on demand.

Repositories keep every commit, so that a pinned revision stays what it was. `Hub.faults` holds what shall go wrong next.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecretsecretsecret1234"
LARGE = (".safetensors", ".bin", ".gguf")
API = re.compile(r"^/api/models/([^/]+/[^/]+)(?:/(preupload|commit|revision|tree|refs)(?:/(.+))?)?$")
LFS = re.compile(r"^/([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)$")
FILE = re.compile(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Repo:
    """All commits of one repository, newest last."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add({})

    def add(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def at(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.head if revision == "main" else revision)


class Hub:
    """The server, its repositories, its log of requests, and the faults it shall make."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.messages: list[str] = []
        self.ranges: list[str] = []
        self.faults: dict[str, int] = {}
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fault(self, name: str) -> bool:
        """True once for each time the fault was asked for."""
        left = self.faults.get(name, 0)
        self.faults[name] = max(0, left - 1)
        return left > 0


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.content = self._content()
        self.hub.log.append(f"{self.command} {self.path_only}")
        self.signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        for pattern, answer in ((API, self._api), (LFS, self._lfs), (FILE, self._file)):
            if found := pattern.match(self.path_only):
                return answer(*found.groups())
        return self._other()

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def _content(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            read = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                read += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return read
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, code: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _refuse(self, code: int, word: str, text: str = "") -> None:
        self._send(code, {"error": text or word}, {"X-Error-Code": word, "X-Error-Message": text or word})

    def _other(self) -> None:
        url = f"http://{self.headers['Host']}"
        if self.path_only == "/api/whoami-v2":
            return (
                self._send(200, {"type": "user", "name": "tester"})
                if self.signed
                else self._refuse(401, "Unauthorized")
            )
        if self.path_only == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if self.path_only == "/api/repos/create":
            if not self.signed:
                return self._refuse(401, "Unauthorized", "Invalid username or password.")
            asked = json.loads(self.content)
            name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            if name in self.hub.repos:
                return self._send(
                    409, {"error": "exists", "url": f"{url}/{name}"}, {"X-Error-Code": "RepoAlreadyExists"}
                )
            self.hub.repos[name] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
            return self._send(200, {"url": f"{url}/{name}", "name": name, "id": name})
        if self.path_only.startswith("/lfs/") and self.command == "PUT":
            return self._receive(self.path_only.removeprefix("/lfs/"))
        return self._refuse(404, "NotFound")

    def _receive(self, oid: str) -> None:
        if self.hub.fault("cut upload"):
            self.close_connection = True
            return self.connection.close()
        if _sha256(self.content) != oid:
            return self._refuse(400, "BadHash")
        self.hub.blobs[oid] = self.content
        return self._send(200)

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        return None if repo is None or (repo.private and not self.signed) else repo

    def _lfs(self, name: str, step: str) -> None:
        if step == "verify" or self._repo(name) is None or not self.signed:
            return self._send(200 if step == "verify" else 404, {})
        url, objects = f"http://{self.headers['Host']}", []
        for item in json.loads(self.content)["objects"]:
            found = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                found["actions"] = {"upload": {"href": f"{url}/lfs/{item['oid']}", "header": {}}}
            objects.append(found)
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _api(self, name: str, step: str | None, rest: str | None) -> None:
        repo = self._repo(name)
        if repo is None:
            return self._refuse(404, "RepoNotFound")
        if step == "preupload":
            files = json.loads(self.content)["files"]
            modes = [("lfs" if item["path"].endswith(LARGE) else "regular", item["path"]) for item in files]
            return self._send(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]})
        if step == "commit":
            return self._commit(repo, name)
        revision = (rest or "main").split("/")[0]
        files = repo.at(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if step == "tree":
            return self._send(200, [self._entry(*item) for item in sorted(files.items())])
        sha = repo.head if revision == "main" else revision
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._send(200, {"_id": "1", "id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": _sha1(content), "size": len(content), "path": path}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 135}
        return entry

    def _commit(self, repo: Repo, name: str) -> None:
        if not self.signed or self.hub.fault("refuse commit"):
            given = self.headers.get("Authorization", "")
            return self._refuse(
                403, "Forbidden", f"storage limit reached for {given}"
            )  # a rude server quotes the token
        files = dict(repo.commits[repo.head])
        for line in self.content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self._refuse(400, "LfsMissing")
                files[value["path"]] = self.hub.blobs[value["oid"]]
        sha = repo.add(files)
        url = f"http://{self.headers['Host']}/{name}/commit/{sha}"
        return self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return self._refuse(404 if self.signed or name not in self.hub.repos else 401, "RepoNotFound")
        files = repo.at(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        sha = repo.head if revision == "main" else revision
        if path not in files:
            return self._send(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content, large = files[path], path.endswith(LARGE)
        tag = _sha256(content) if large else _sha1(content)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "ETag": f'"{tag}"'}
        if large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        return self._deliver(content, headers, large)

    def _deliver(self, content: bytes, headers: dict[str, str], large: bool) -> None:
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        if wanted:
            self.hub.ranges.append(wanted[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if large and self.command == "GET" and self.hub.fault("cut download"):
            self.send_response(206 if wanted else 200)
            for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.close()
        return self._send(206 if wanted else 200, content[start:], headers)
