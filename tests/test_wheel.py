"""What the README shows works from an installed wheel, in an empty directory."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from peftkit.config.shipped import shipped_configs
from peftkit.data.named_chat_templates import template_names

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `python` of an environment with the wheel, and with the libraries of this one."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(place / "env", with_pip=False)
    python = place / "env" / "bin" / "python"
    libraries = next((place / "env").glob("lib/python*/site-packages"))
    # Found after what is installed here, and without the links to source trees that it holds.
    (libraries / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    wheel = next(place.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps",
         "--no-index", str(wheel)], check=True, capture_output=True,
    )  # fmt: skip
    return python


def run(python, directory, *words):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python.parent / "peftkit"), *words]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_wheel_trains_a_shipped_config_on_its_own_data(installed, tmp_path, llama_dir):
    words = ["--config", "chat/quickstart", "--model", str(llama_dir), "--train.max_steps", "1"]
    words += ["--data.evaluation", "0.01", "--train.evaluate_every", "null", "--merge", "false"]
    done = run(installed, tmp_path, "train", "--cpu", "chat", *words)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stderr
    assert (tmp_path / "runs" / "quickstart" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_a_wheel_holds_every_config_preset_small_model_and_chat_template(installed, tmp_path):
    code = (
        "from peftkit.config import shipped\n"
        "print(shipped.shipped_directory()); print(*shipped.shipped_configs())\n"
        "print(shipped.launch_preset('ddp'))\n"
        "model = 'package:peftkit/recipes/models/vit-digits/config.json'\n"
        "print(shipped.package_file(model, OSError))\n"
        "from peftkit.data.named_chat_templates import template_names\n"
        "print(*template_names())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    lines = subprocess.run(
        [str(installed), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout.splitlines()
    assert str(ROOT) not in lines[0]
    assert lines[1].split() == shipped_configs()
    assert Path(lines[2]).is_file()
    assert Path(lines[3]).is_file()
    assert lines[4].split() == template_names()
