"""The endpoints of the Hugging Face hub that an upload uses, on a socket of this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_allowed"


class Hub:
    """What is stored, by repository and path; `private` says how a repository was made."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.refuses_commits = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub, path = self.hub, self.path
        repo = "/".join(path.removeprefix("/api/models").removesuffix(".git/info/lfs/objects/batch").split("/")[1:3])
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            there = repo in hub.files
            if not there:
                hub.files[repo], hub.private[repo] = {}, asked.get("visibility") == "private"
            return self.answer(409 if there else 200, {"url": f"{hub.address}/{repo}"})
        if repo not in hub.files:
            return self.answer(404, {"error": "Repository not found"})
        if path.startswith(f"/api/models/{repo}/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": n, "uploadMode": mode, "shouldIgnore": False, "oid": None} for n, mode in modes.items()]
            return self.answer(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            told = [o | {"actions": {"upload": {"href": f"{hub.address}/store/{o['oid']}"}}} for o in wanted]
            return self.answer(200, {"transfer": "basic", "objects": told})
        if path.startswith(f"/api/models/{repo}/commit/"):
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return self.answer(404, {"error": f"nothing is at {path}"})

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.refuses_commits:
            return self.answer(403, {"error": "You have read access but not the required permissions"})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.hub.blobs[value["oid"]]
        address = f"{self.hub.address}/{repo}/commit/{'0' * 40}"
        return self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
