"""The sweep file for wandb's agent: what the agent would call is a command of ours, and a real agent calls it."""

import http.server
import json
import os
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, SMALL, call
from tests.wandb_files import runs

FILE = ROOT / "docs" / "wandb_sweep.yaml"


def test_every_setting_of_the_sweep_is_a_command_that_composes(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "x1y2")
    sweep = yaml.safe_load(FILE.read_text())
    assert (ROOT / sweep["program"]).is_file()
    names = list(sweep["parameters"])
    grid = list(product(*(sweep["parameters"][name]["values"] for name in names)))
    fixed = [part for part in sweep["command"] if not part.startswith("${")]
    assert len(grid) == 16
    for values in (grid[0], grid[-1]):
        arguments = [f"{name}={value}" for name, value in zip(names, values, strict=True)]  # ${args_no_hyphens}
        done = call("train", *fixed, *arguments, "--cfg", "job", "--resolve")
        assert done.returncode == 0, done.stderr
        config = yaml.safe_load(done.stdout)
        assert config["out"] == "outputs/sweep/x1y2"
        assert config["side"] == values[0]
        assert config["mitigation"]["stop_epoch"] == values[2]
        assert config["logger"]["wandb"]["offline"] is False


class Server(http.server.ThreadingHTTPServer):
    """As much of wandb's server as its agent talks to: a sweep whose first heartbeats are answered by a run each."""

    daemon_threads = True

    def __init__(self, sweep: str, jobs: list[dict[str, object]]) -> None:
        self.sweep, self.jobs, self.asked = sweep, jobs, list[str]()
        super().__init__(("127.0.0.1", 0), Handler)

    def answer(self, asked: dict[str, object]) -> dict[str, object]:
        query, variables = str(asked["query"]), asked.get("variables") or {}
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"id": "s", "config": self.sweep, "runs": {"edges": []}}}}
        if "CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "Heartbeat" in query:
            assert isinstance(variables, dict)
            busy = "true" in str(variables.get("runState"))
            commands = [] if busy else [self.jobs.pop(0) if self.jobs else {"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return {"viewer": {"id": "v", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(asked["query"].split("(")[0].strip())
        body = json.dumps({"data": server.answer(asked)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.mark.slow
def test_the_agent_trains_both_sides_of_a_setting(scenes: Path, tmp_path: Path) -> None:
    """The agent is wandb's own; the server is made up, and what the runs log stays offline."""
    pytest.importorskip("wandb")
    sweep = yaml.safe_load(FILE.read_text())
    command = [part.replace("outputs/sweep", str(tmp_path / "sweep")) for part in sweep["command"]]
    sweep["command"] = [*command[:-1], f"data.dir={scenes}", *SMALL, command[-1]]
    given = {"mitigation.text_mask": 0.15, "mitigation.stop_epoch": 1}
    jobs: list[dict[str, object]] = []
    for number, side in enumerate(("target", "reference")):
        args = {name: {"value": value} for name, value in {"side": side, **given}.items()}
        jobs.append({"type": "run", "run_id": f"run{number}", "program": str(ROOT / "train.py"), "args": args})
    with Server(yaml.safe_dump(sweep), jobs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        environment |= {
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the agent calls python
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "agent", "--count", "2", "us/dejavu-lit/s"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    for number, side in enumerate(("target", "reference")):
        out = tmp_path / "sweep" / f"run{number}"
        assert json.loads((out / "run.json").read_text())["side"] == side, done.stderr
        assert json.loads((out / "run.json").read_text())["epochs"] == 1
        (logged,) = runs(out)
        assert logged.run.run_id == f"run{number}"
        assert json.loads((out / "wandb" / "id.json").read_text())["id"] == f"run{number}"
        assert logged.run.sweep_id == "s"
        assert logged.config["mitigation"]["text_mask"] == 0.15
