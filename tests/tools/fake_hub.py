"""A small server that speaks enough of the protocol of the Hugging Face Hub to publish and fetch a model; everything in memory."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 39 + "{}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _send(self, code, body=b"", **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, code=200):
        self._send(code, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self):
        self.server.requested.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[:2])
        if "resolve" in parts:
            if repo not in self.server.repos:
                return self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            name, revision = "/".join(parts[4:]), parts[3]
            if revision not in ("main", COMMIT.format(1)):
                return self._send(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            if name not in self.server.repos[repo]:
                return self._send(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            body = self.server.repos[repo][name]
            etag = hashlib.sha256(body).hexdigest()
            return self._send(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT.format(1))
        if parts[:2] == ["api", "models"]:
            found = self.server.repos.get("/".join(parts[2:4]), {})
            return self._json(
                dict(
                    id="/".join(parts[2:4]), sha=COMMIT.format(1), siblings=[dict(rfilename=n) for n in found]
                )
            )
        self._json({}, 404)

    do_HEAD = do_GET

    def do_POST(self):
        self.server.requested.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return self._json(dict(errors=[], warnings=[]))
        if self.headers.get("Authorization") != "Bearer right":
            return self._json(dict(error="Invalid username or password."), 401)
        if parts[:3] == ["api", "repos", "create"]:
            requested = json.loads(body)
            repo = "/".join(filter(None, (requested.get("organization"), requested["name"])))
            self.server.repos.setdefault(repo, {})
            hidden = (
                requested.get("private") or requested.get("visibility") == "private"
            )  # the older and the newer word
            self.server.private[repo] = bool(hidden)
            return self._json(dict(url=f"{self.server.address}/{repo}", id=repo))
        repo = "/".join(parts[2:4])
        if parts[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            return self._json(
                dict(files=[dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in files])
            )
        if parts[4:5] == ["commit"]:
            for line in filter(None, body.split(b"\n")):
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.address}/{repo}/commit/{COMMIT.format(1)}"
            return self._json(dict(commitUrl=url, commitOid=COMMIT.format(1), hookOutput="", success=True))
        self._json({}, 404)


class FakeHub:
    "`with FakeHub() as hub`: hub.address is the endpoint, hub.repos {owner/name: {file: bytes}}."

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.repos, self.server.private, self.server.requested = {}, {}, []
        self.address = self.server.address = f"http://127.0.0.1:{self.server.server_port}"
        self.repos, self.private, self.requested = (
            self.server.repos,
            self.server.private,
            self.server.requested,
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
