"""Keys and tokens in the environment never reach what a run leaves behind."""

import os
import subprocess
import sys

from tests.conftest import ROOT, SMALL

SECRETS = {
    "WANDB_API_KEY": "5ec2e7" + "a" * 34,
    "HF_TOKEN": "hf_5ec2e7tokentoken",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7aws",
}


def test_no_file_of_a_run_holds_a_secret(scenes, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "side=target", f"data.dir={scenes}", f"out={tmp_path / 'run'}"]
    options = [*SMALL, "recipe.epochs=1", "logger=wandb"]
    environment = {
        **os.environ,
        **SECRETS,
        "WANDB_DIR": str(tmp_path / "wandb"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
