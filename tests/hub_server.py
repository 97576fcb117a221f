"""A small Hugging Face hub: the endpoints that an upload uses, over HTTP, with files in memory."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

TOKEN = "hf_rightful"
READER = "hf_reader"


class Hub:
    """Runs in a thread while it is used as a context manager.

    Attributes:
        repos: Repository -> path -> content, after the last commit.
        private: Repository -> whether it was made private.
        commits: Summaries of all commits.
        sent: Bytes of large files that were sent.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.large: dict[str, bytes] = {}
        self.sent = 0
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _refused(self) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READER):
            self._answer({"error": "Invalid username or password."}, 401)
        elif token == READER:
            self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        return token != TOKEN

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        path = urlparse(self.path).path
        with self.hub.lock:
            if path == "/api/repos/create":
                self._create(json.loads(body))
            elif path == "/api/validate-yaml":  # the card's header
                bad = "license: not a licence" in json.loads(body)["content"]
                errors = [{"message": '"license" must be one of mit, …'}] if bad else []
                self._answer({"errors": errors, "warnings": []}, 400 if bad else 200)
            elif "/preupload/" in path:
                files = json.loads(body)["files"]
                self._answer(
                    {
                        "files": [
                            {"path": f["path"], "shouldIgnore": False, "uploadMode": _mode(f)} for f in files
                        ]
                    }
                )
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._answer(
                    {
                        "transfer": "basic",
                        "objects": [self._upload_of(o) for o in json.loads(body)["objects"]],
                    }
                )
            elif "/commit/" in path:
                self._commit(path.split("/api/models/")[1].split("/commit/")[0], body)
            else:
                self._answer({"error": f"no {path}"}, 404)

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        repo = path.removeprefix("/api/models/").split("/revision/")[0].split("/tree/")[0]
        files = self.hub.repos.get(repo)
        if self._refused():
            return
        if files is None:
            self._answer({"error": "Repository not found"}, 404)
        elif "/tree/" in path:
            self._answer([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files.items()])
        else:
            self._answer({"id": repo, "sha": "0" * 40, "siblings": [{"rfilename": n} for n in files]})

    def do_PUT(self) -> None:
        body = self._body()
        with self.hub.lock:
            self.hub.large[self.path.rpartition("/")[2]] = body
            self.hub.sent += len(body)
        self._answer({})

    def _create(self, asked: dict) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repos:
            self._answer({"error": "exists", "url": f"{self.hub.address}/{repo}"}, 409)
            return
        self.hub.repos[repo] = {}
        self.hub.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._answer({"url": f"{self.hub.address}/{repo}"})

    def _upload_of(self, item: dict) -> dict:
        if item["oid"] in self.hub.large:
            return item
        return item | {"actions": {"upload": {"href": f"{self.hub.address}/store/{item['oid']}"}}}

    def _commit(self, repo: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.hub.repos[repo][value["path"]]
        sha = f"{len(self.hub.commits):040x}"
        self._answer(
            {"commitUrl": f"{self.hub.address}/{repo}/commit/{sha}", "commitOid": sha, "success": True}
        )


def _mode(file: dict) -> str:
    return "lfs" if file["path"].endswith(".safetensors") else "regular"
