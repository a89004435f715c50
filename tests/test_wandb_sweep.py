"""The sweep file for wandb's agent: what the agent would call is a command of ours."""

from itertools import product

import yaml

from tests.conftest import ROOT, call


def test_every_setting_of_the_sweep_is_a_command_that_composes(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "x1y2")
    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
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
