"""Policies from and to the Hugging Face hub: its package talks to a server of this test, never to a live one."""

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from walk import PATIENCE_S

from diffpolicy import DiffusionPolicy
from diffpolicy.policy import load_policy

pytest.importorskip("huggingface_hub")

TOKEN = "hf_of_this_test"
COMMIT = "c" * 40


@dataclass
class Hub:
    """What the server holds: the files of each repository, and what was asked for."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    created: list[dict] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class Answers(http.server.BaseHTTPRequestHandler):
    """The few routes of the hub that uploading and downloading need."""

    hub: Hub

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.hub.asked.append(self.path)
        found = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", self.path)
        if found is None or found[1] not in self.hub.files or found[2] not in ("main", COMMIT):
            return self.answer(404, X_Error_Code="RepoNotFound")
        content = self.hub.files[found[1]].get(found[3])
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    def do_GET(self) -> None:
        self.do_HEAD()

    def do_POST(self) -> None:
        self.hub.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b'{"error": "Invalid credentials"}')
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.hub.created.append(asked)
            name = f"{asked.get('organization')}/{asked['name']}"
            self.hub.files.setdefault(name, {})
            return self.answer(200, json.dumps({"url": f"{self.hub.address}/{name}"}).encode())
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        if self.path.endswith("/commit/main"):
            name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.hub.address}/{name}/commit/{COMMIT}"
            return self.answer(200, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())
        return self.answer(200, b'{"errors": [], "warnings": []}')  # of the card's front matter

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    handler = type("OfThisTest", (Answers,), {"hub": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


def run(program: str, folder: Path, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose hub is at `address`; the package reads these variables when it is imported."""
    mine = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", f"from diffpolicy import DiffusionPolicy\n{program}"]
    settings = {**os.environ, **mine, "HF_TOKEN": TOKEN, **environment}
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=settings, timeout=PATIENCE_S)


LOAD = 'DiffusionPolicy.from_pretrained("owner/name").save_pretrained("loaded")'


def test_a_policy_goes_to_the_hub_and_comes_back_and_stays_without_network(
    hub: Hub, small_policy: DiffusionPolicy, tmp_path: Path
) -> None:
    small_policy.metadata = {"task": "reach", "license": "mit"}
    small_policy.save_pretrained(tmp_path / "saved")
    push = 'print(DiffusionPolicy.from_pretrained("saved").push_to_hub("owner/name", private=True))'
    pushed = run(push, tmp_path, hub.address)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub.address}/owner/name"
    assert hub.created[0]["name"] == "name"
    files = hub.files["owner/name"]
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    assert b'from_pretrained("owner/name")' in files["README.md"]
    loaded = run(LOAD, tmp_path, hub.address)
    assert loaded.returncode == 0, loaded.stderr
    fetched = [path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path]
    assert set(fetched) == {"config.json", "model.safetensors"}, "nothing else is downloaded"
    again = load_policy(tmp_path / "loaded")
    for name, value in small_policy.acting_state().items():
        torch.testing.assert_close(again.acting_state()[name], value, rtol=0.0, atol=0.0)  # the same file
    hub.files.clear()
    offline = run(LOAD.replace('"loaded"', '"offline"'), tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert (tmp_path / "offline" / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_damaged_or_pickled_checkpoint_of_the_hub_is_refused(
    hub: Hub, small_policy: DiffusionPolicy, tmp_path: Path
) -> None:
    small_policy.save_pretrained(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    weights = bytearray(files["model.safetensors"])
    weights[-9] ^= 1
    hub.files["owner/damaged"] = {**files, "model.safetensors": bytes(weights)}
    hub.files["owner/pickled"] = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04K\x01."}
    program = """
for name in ("owner/damaged", "owner/pickled", "owner/missing", "owner/damaged@v2"):
    try:
        DiffusionPolicy.from_pretrained(name)
    except (ValueError, OSError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""
    done = run(program, tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    damaged, pickled, missing, revision = done.stdout.splitlines()
    assert re.match(r"ValueError .*model\.safetensors is damaged: SHA-256", damaged)
    for line in (pickled, missing, revision):
        assert re.match(r"FileNotFoundError checkpoint '.*' not found; looked at .* is no checkpoint either", line)


def test_a_folder_of_that_name_wins_and_a_misspelled_one_is_not_looked_up(
    hub: Hub, small_policy: DiffusionPolicy, tmp_path: Path
) -> None:
    small_policy.save_pretrained(tmp_path / "owner" / "name")
    program = f"""{LOAD}
try:
    DiffusionPolicy.from_pretrained("owner/nmae")
except FileNotFoundError as error:
    print(error)
"""
    done = run(program, tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("checkpoint 'owner/nmae' not found; looked at ")
    assert hub.asked == []


def test_what_fails_is_said_with_its_mend(hub: Hub, tmp_path: Path, shipped_checkpoint: Path) -> None:
    program = f"""
policy = DiffusionPolicy.from_pretrained({str(shipped_checkpoint)!r})
for call in (lambda: policy.push_to_hub("owner/name"), lambda: policy.push_to_hub("name"),
             lambda: DiffusionPolicy.from_pretrained("owner/name")):
    try:
        call()
    except (ValueError, OSError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""
    refused = run(program, tmp_path, hub.address, HF_TOKEN="hf_wrong").stdout.splitlines()
    assert re.match(r"ConnectionError push_to_hub: 'owner/name': .* refused or failed: .*'hf auth login'", refused[0])
    assert refused[1] == "ValueError push_to_hub: 'name' is no name on the hub, expected owner/name"
    silent = run(program, tmp_path, hub.address, HF_HUB_OFFLINE="1").stdout.splitlines()
    assert re.match(r"ConnectionError checkpoint 'owner/name' not found; looked at .* gave no answer on", silent[2])


def test_without_the_package_the_error_says_what_to_install(small_policy: DiffusionPolicy, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"not found; looked at .*pip install 'diffpolicy\[hub\]'"):
        DiffusionPolicy.from_pretrained("owner/name")
    with pytest.raises(ImportError, match=r"to upload 'owner/name' .*pip install 'diffpolicy\[hub\]'"):
        small_policy.push_to_hub("owner/name")


def test_importing_and_loading_from_disk_leaves_the_package_alone(shipped_checkpoint: Path, tmp_path: Path) -> None:
    program = f"""
import sys
DiffusionPolicy.from_pretrained({str(shipped_checkpoint)!r})
print("huggingface_hub" in sys.modules)
"""
    assert run(program, tmp_path, "http://127.0.0.1:9").stdout.strip() == "False"
