"""Metrics reach the trackers, without a network."""

import os
import subprocess
import sys

import pytest
import yaml

from tests.recipes.jobs import ROOT, config_values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_metrics_reach_a_tracker_without_a_network(name, tmp_path, llama_dir):
    values = config_values("text_classification", tmp_path, llama_dir)
    values["train"] |= {"trackers": [name]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    settings = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    script = str(ROOT / "recipes" / "text_classification.py")
    done = subprocess.run(
        [sys.executable, script, "--config", str(config)],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = {
        "tensorboard": (tmp_path / "run").rglob("events.out.tfevents.*"),
        "wandb": (tmp_path / "run" / "wandb").rglob("*.wandb"),
        "trackio": (tmp_path / "trackio").rglob("*.db"),
    }
    assert [path for path in written[name] if path.stat().st_size > 0]
