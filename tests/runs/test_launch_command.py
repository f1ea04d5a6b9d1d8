from pathlib import Path

import pytest

from peftkit.runs import cpu_processes, launch_command

CPU_PRESET = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu.yaml"


@pytest.fixture
def three(tmp_path):
    """A config file of Accelerate that asks for three processes."""
    path = tmp_path / "three.yaml"
    text = CPU_PRESET.read_text()
    path.write_text(text.replace("num_processes: 1", "num_processes: 3"))
    return str(path)


def test_the_recipes_config_does_not_say_how_many_processes_to_start():
    command = ["accelerate", "launch", "--cpu", "x.py", "--config", "recipe.yaml"]
    assert cpu_processes._requested_count(command) == 1


def test_the_number_of_processes_is_read_from_the_launchers_config_file(three):
    command = ["accelerate", "launch", "--config_file", three, "x.py", "--config", "recipe.yaml"]
    assert cpu_processes._requested_count(command) == 3


def test_the_launchers_flag_for_the_number_of_processes_comes_before_its_config_file(three):
    command = ["accelerate", "launch", "--config_file", three, "--num_processes", "2", "x.py"]
    assert cpu_processes._requested_count(command) == 2


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("python -m accelerate.commands.launch --quiet --config_file a x.py --config c",
         ["--quiet", "--config_file", "a"]),
        ("/bin/python /bin/accelerate launch --cpu x.py", ["--cpu"]),
        ("bash x.py", None),
        ("/bin/accelerate launch y.py", None),
    ],
)  # fmt: skip
def test_the_launchers_flags_are_found_in_its_command_line(command, flags):
    assert launch_command._flags_before("x.py", command.split()) == flags


def test_the_typed_command_is_the_one_that_peftkit_train_hands_on(monkeypatch):
    monkeypatch.setenv("PEFTKIT_COMMAND", "peftkit train chat --config my.yaml")
    assert launch_command.typed_command() == "peftkit train chat --config my.yaml"


def test_the_typed_command_names_accelerate_and_its_flags(monkeypatch):
    monkeypatch.delenv("PEFTKIT_COMMAND", raising=False)
    monkeypatch.setattr("sys.argv", ["x.py", "--config", "a b.yaml"])
    monkeypatch.setattr(launch_command, "_launch_flags", lambda: ["--cpu"])
    assert launch_command.typed_command() == "accelerate launch --cpu x.py --config 'a b.yaml'"


def test_the_typed_command_of_a_plain_script_starts_with_python(monkeypatch):
    monkeypatch.delenv("PEFTKIT_COMMAND", raising=False)
    monkeypatch.setattr("sys.argv", ["x.py", "--config", "c.yaml"])
    monkeypatch.setattr(launch_command, "_launch_flags", lambda: None)
    assert launch_command.typed_command() == "python x.py --config c.yaml"
