"""Hub ids, with the hub's own client talking to a server here that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import hf_families
import pytest
import torch
from hf_models import reference

pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """(its address, the folder whose directories ORGANISATION/NAME it serves, what was asked for)"""
    root, asked = tmp_path / "hub", []

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if name.startswith("gated/"):
                self.answer(403, b'{"error": "restricted"}', X_Error_Code="GatedRepo")
            elif not (root / name).is_dir():
                self.answer(401, b'{"error": "not found"}', X_Error_Code="RepoNotFound")
            elif parts[0] == "api":
                files = sorted((root / name).iterdir())
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
                if "tree" in parts:
                    info = [
                        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                        for file in files
                    ]
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            else:
                body = (root / name / parts[-1]).read_bytes()
                self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"')

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root, asked
    server.shutdown()
    server.server_close()


def generate(address, tmp_path, hub_id, **more):
    """`python -m gptft generate HUB_ID` in a process of its own: the client reads its settings when it is imported."""
    env = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        **more,
    }
    command = [sys.executable, "-m", "gptft", "generate", hub_id, "Hello", "--raw", "--max_new_tokens", "4"]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_id_is_fetched_once_and_then_needs_no_network(tmp_path, hub, sharded):
    """What is needed is fetched, other formats of the same weights are not; the second time the cache is enough."""
    address, root, asked = hub
    hf_families.write(root / "EleutherAI" / "pythia-toy", *hf_families.pythia())
    reference("pythia", torch.float32, tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        path.rename(root / "EleutherAI" / "pythia-toy" / path.name)
    widen(root / "EleutherAI" / "pythia-toy", sharded)
    (root / "EleutherAI" / "pythia-toy" / "flax_model.msgpack").write_bytes(b"x" * 1000)
    (root / "EleutherAI" / "pythia-toy" / "pytorch_model.bin").write_bytes(b"not to be fetched")
    done = generate(address, tmp_path, "EleutherAI/pythia-toy")
    assert done.returncode == 0, done.stderr
    assert not any("msgpack" in path or "pytorch_model" in path for path in asked)
    assert any(path.endswith(".safetensors") for path in asked)
    n = len(asked)
    again = generate(address, tmp_path, "EleutherAI/pythia-toy", HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, done.stdout) and len(asked) == n


def widen(directory, sharded):
    """The toy model, as wide as its tokenizer."""
    import transformers

    vocabulary = json.loads((directory / "tokenizer.json").read_text())
    size = max([*vocabulary["model"]["vocab"].values(), *(t["id"] for t in vocabulary["added_tokens"])]) + 1
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(size)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="100KB" if sharded else "5GB")
    assert (directory / "model.safetensors.index.json").exists() == sharded


@pytest.mark.parametrize(
    "hub_id, message",
    [
        ("gated/llama", "'gated/llama' is gated: ask for access on its page and log in with `hf auth login`"),
        ("nobody/nothing", "'nobody/nothing' is no local directory, no preset and no repository on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line(tmp_path, hub, hub_id, message):
    """A missing permission once ended in forty lines of a client's own errors."""
    done = generate(hub[0], tmp_path, hub_id)
    assert done.returncode == 2 and done.stderr.strip() == f"gptft: {message}"
    assert done.stdout == ""


def test_a_hub_that_does_not_answer_is_one_line(tmp_path):
    done = generate("http://127.0.0.1:9", tmp_path, "EleutherAI/pythia-70m")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "'EleutherAI/pythia-70m' is no directory, not in the local cache, and the hub cannot" in done.stderr
