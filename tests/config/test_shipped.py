import pytest

from peftkit.config.shipped import (
    config_file,
    launch_preset,
    package_file,
    shipped_configs,
    shipped_directory,
)
from peftkit.errors import ConfigError, DataError


def test_a_shipped_config_is_found_by_its_name_and_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shipped_directory() / "configs" / "chat" / "quickstart.yaml"
    assert config_file("chat/quickstart") == config_file("chat/quickstart.yaml") == shipped
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "quickstart").write_text("seed: 1")
    assert config_file("chat/quickstart").read_text() == "seed: 1"
    assert "chat/quickstart" in shipped_configs()


def test_a_config_that_does_not_exist_gets_the_nearest_name():
    message = r"cannot read the config chat/quick-start: .*did you mean 'chat/quickstart'"
    with pytest.raises(ConfigError, match=message):
        config_file("chat/quick-start")


def test_a_launch_preset_is_found_by_its_name_and_any_other_word_stays(tmp_path):
    assert launch_preset("ddp") == str(shipped_directory() / "accelerate" / "ddp.yaml")
    assert launch_preset("/nowhere/mine.yaml") == "/nowhere/mine.yaml"


def test_a_file_in_a_package_is_named_by_what_pip_shows_or_by_what_python_imports():
    for name in ("pydantic-core", "pydantic_core"):
        assert package_file(f"package:{name}/py.typed", DataError).is_file()
    rows = package_file("package:peftkit/recipes/data/kestrelmoor/train.jsonl", DataError)
    assert rows == shipped_directory() / "data" / "kestrelmoor" / "train.jsonl"
    for name in ("not-installed-here", "not_installed_here", ""):
        with pytest.raises(DataError, match=f"the Python package {name!r} is not installed"):
            package_file(f"package:{name}/x.jsonl", DataError)
