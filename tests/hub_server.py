"""A small real server that speaks the part of the Hugging Face hub's protocol by which data sets are read."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "someone/something"


class HubServer:
    """Serves one data set; `commits` is {commit: folder}, the last one is main. `drop`: of how many of the next reads
    of a file's bytes the connection is closed in the middle."""

    def __init__(self, commits):
        self.commits, self.drop, self.reads, self.lock = commits, 0, 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, revision):
        if revision in ("main", ""):
            return list(self.commits)[-1]
        return next((commit for commit in self.commits if commit.startswith(revision)), None)

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0)).decode()
        path = urllib.parse.unquote(handler.path.partition("?")[0])
        for start, what in (
            (f"/api/datasets/{NAME}", self.describe),
            (f"/datasets/{NAME}/resolve/", self.file),
        ):
            if path.startswith(start):
                what(handler, path.removeprefix(start).strip("/"), body)
                return
        self.send(handler, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def describe(self, handler, rest, body):
        what, _, more = rest.partition("/")
        revision, _, inside = (more or "main").partition("/")
        commit = self.commit(revision)
        if commit is None:
            self.send(handler, {"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        entries = [
            {
                "type": "file" if path.is_file() else "directory",
                "path": path.relative_to(self.commits[commit]).as_posix(),
                "size": path.stat().st_size if path.is_file() else 0,
                "oid": hashlib.sha1(path.read_bytes() if path.is_file() else str(path).encode()).hexdigest(),
            }
            for path in sorted(self.commits[commit].rglob("*"))
        ]
        if what == "tree":
            below = [entry for entry in entries if entry["path"].startswith(f"{inside}/" if inside else "")]
            if "recursive=true" not in handler.path.lower():
                depth = inside.count("/") + 1 if inside else 0
                below = [entry for entry in below if entry["path"].count("/") == depth]
            self.send(handler, below)
        elif what == "paths-info":
            form = json.loads(body) if body.startswith("{") else urllib.parse.parse_qs(body)
            self.send(handler, [entry for entry in entries if entry["path"] in form["paths"]])
        else:
            siblings = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
            about = {"id": NAME, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": []}
            self.send(handler, about | {"disabled": False, "downloads": 0, "likes": 0})

    def file(self, handler, rest, _):
        revision, _, name = rest.partition("/")
        commit = self.commit(revision)
        path = Path(self.commits.get(commit, "/nowhere"), name)
        if not path.is_file():
            self.send(handler, {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content, status, headers = path.read_bytes(), 200, {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if wanted := handler.headers.get("range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            headers["Content-Range"], status = f"bytes {first}-{end - 1}/{len(content)}", 206
            content = content[int(first) : end]
        with self.lock:
            self.reads += handler.command == "GET"
            cut = handler.command == "GET" and self.drop > 0
            self.drop -= cut
        self.send(handler, content, status, headers, cut)

    @staticmethod
    def send(handler, content, status=200, headers=None, cut=False):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command != "HEAD":
            with contextlib.suppress(OSError):
                handler.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    handler.wfile.flush()
                    handler.connection.close()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
