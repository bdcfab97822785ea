"""A hub on this machine's own loopback: repositories, commits and files, as huggingface_hub asks for them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories in memory: name -> commits in order, each (id, files). ``requests`` counts those that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.requests = 0
        self.private: set[str] = set()

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add files on top of the newest commit; returns the new one."""
        commits = self.repositories.setdefault(name, [])
        content = {**(commits[-1][1] if commits else {}), **files}
        text = json.dumps([name, len(commits), sorted((k, hashlib.sha1(v).hexdigest()) for k, v in content.items())])
        oid = hashlib.sha1(text.encode()).hexdigest()
        commits.append((oid, content))
        return oid

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[name]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((commit for commit in commits if commit[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, content: object = None, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self._send({"error": code}, 404, X_Error_Code=code)

    def do_POST(self) -> None:
        self.hub.requests += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            new = name not in self.hub.repositories
            self.hub.repositories.setdefault(name, [])
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            self._send({"url": f"http://{self.headers['Host']}/{name}", "name": name}, 200 if new else 409)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self._send({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            oid = self.hub.commit(match[1], files)
            self._send(
                {
                    "success": True,
                    "commitOid": oid,
                    "commitUrl": f"http://{self.headers['Host']}/{match[1]}/commit/{oid}",
                }
            )
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        else:
            self._missing("EntryNotFound")

    def do_GET(self) -> None:
        self.hub.requests += 1
        path = unquote(urlsplit(self.path).path)
        match = (
            re.fullmatch(r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", path)
            or re.fullmatch(r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?P<tree>)", path)
            or re.fullmatch(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path)
        )
        if match is None or match["name"] not in self.hub.repositories:
            self._missing("RepoNotFound")
            return
        found = self.hub.files(match["name"], match["revision"] or "main")
        if found is None:
            self._missing("RevisionNotFound")
            return
        oid, files = found
        groups = match.groupdict()
        if "file" in groups:
            content = files.get(groups["file"])
            if content is None:
                self._missing("EntryNotFound")
            else:
                self._send(content, ETag=f'"{_git(content)}"', X_Repo_Commit=oid)
        elif "tree" in groups:
            self._send([
                {"type": "file", "path": name, "size": len(content), "oid": self.recorded(name, content)}
                for name, content in files.items()
            ])  # fmt: skip
        else:
            self._send({"id": match["name"], "sha": oid, "siblings": [{"rfilename": name} for name in files]})

    do_HEAD = do_GET

    def recorded(self, name: str, content: bytes) -> str:
        return _git(content)


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(hub: Hub):
    """Serve a hub; gives its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
