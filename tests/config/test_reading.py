from dataclasses import field

import pytest
import yaml

from peftkit.config.reading import build, parse, read, section, to_yaml
from peftkit.config.sections import Adapter, DataSettings, LoraSettings, ModelSettings
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError


@section
class Config:
    """A recipe's config."""

    model: ModelSettings
    data: DataSettings
    adapter: Adapter = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    run_dir: str = "runs/x"


NEEDED = ["--model.source", "m", "--data.train", "d.jsonl"]


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_yaml_and_overrides_are_merged_and_the_command_line_wins(tmp_path):
    words = write(
        tmp_path,
        "model: {source: a}\ndata: {train: d}\ntrain: {learning_rate: 1e-4, batch_size: 2}\n",
    )
    config = read(
        Config, [*words, "--train.batch-size=4", "--adapter.target_modules", "[q_proj, v_proj]"]
    )
    assert (config.train.learning_rate, config.train.batch_size) == (1e-4, 4)
    assert config.adapter.target_modules == ["q_proj", "v_proj"]


def test_every_error_is_told_at_once_with_the_nearest_key(tmp_path):
    words = write(
        tmp_path,
        "model: {sorce: a}\ndata: {train: d}\ntrain: {batch_size: 0, lerning_rate: 1e-4}\nsed: 1\n",
    )
    with pytest.raises(ConfigError) as caught:
        read(Config, [*words, "--adapter.r", "many", "--adapter.lora_dropout", "1.5"])
    text = str(caught.value)
    assert "7 error(s)" in text
    for line in (
        "model.source: field required",
        "model.sorce: unknown key; did you mean 'source'?",
        "train.batch_size: input should be greater than 0 (got 0)",
        "train.lerning_rate: unknown key; did you mean 'learning_rate'?",
        "sed: unknown key",
        "adapter.r: input should be a valid integer",
        "adapter.lora_dropout: input should be less than 1 (got 1.5)",
    ):
        assert line in text


def test_the_program_ends_with_2_after_an_error_and_0_after_help(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Config, [*NEEDED, "--train.epochs", "0"])
    assert ended.value.code == 2
    assert "train.epochs: input should be greater than 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        parse(Config, ["--help"])
    assert ended.value.code == 0
    assert "--train.learning-rate FLOAT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epochs", "1"], "'train.epochs' is not an option"),
        (["--train.epochs"], "--train.epochs needs a value"),
        (["--config", "/nowhere.yaml"], "cannot read the config /nowhere.yaml"),
        ([*NEEDED, "--train.early_stopping", "2"], "early_stopping needs evaluate_every"),
        (
            [*NEEDED, "--model.quantization", "nf5"],
            "model.quantization: input should be 'int8', 'nf4' or 'fp4'",
        ),
        (
            [*NEEDED, "--train.learning_rate", ".inf"],
            "train.learning_rate: input should be a finite number",
        ),
        ([*NEEDED, "--train.beta2", "1.0"], "train.beta2: input should be less than 1"),
        (
            [*NEEDED, "--data.max_length", "1"],
            "data.max_length: input should be greater than or equal to 2",
        ),
    ],
)
def test_bad_command_lines_get_one_clear_sentence(words, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        read(Config, words)


@pytest.mark.parametrize("text", ["- a list\n", "just words\n", "a: [1\n"])
def test_a_config_file_holds_keys_and_values(tmp_path, text):
    with pytest.raises(ConfigError, match="config"):
        read(Config, write(tmp_path, text))


def test_the_resolved_config_is_itself_a_config(tmp_path):
    config = read(
        Config, [*NEEDED, "--train.learning_rate", "3e-5", "--adapter.options", "{use_dora: true}"]
    )
    text = to_yaml(config)
    assert build(Config, yaml.safe_load(text), "again") == config
    assert read(Config, write(tmp_path, text)) == config


def test_an_option_that_peft_does_not_know_or_that_stands_elsewhere_is_refused():
    for options, message in (
        ("{use_dra: true}", r"adapter\.options\.use_dra: unknown key; did you mean 'use_dora'"),
        ("{r: 8}", r"adapter\.options\.r: set adapter\.r instead"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(Config, [*NEEDED, "--adapter.options", options])
    assert LoraSettings(r=4, options={"use_dora": True}).build().use_dora


# The method


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], "LoraConfig"),
        (
            ["--adapter.method", "adalora", "--adapter.init_r", "6", "--adapter.target_r", "3"],
            "AdaLoraConfig",
        ),
        (["--adapter.method", "bottleneck", "--adapter.placement", "houlsby"], "BottleneckConfig"),
        (["--adapter.method", "prefix", "--adapter.options", "{init_std: 0.1}"], "PrefixConfig"),
    ],
)
def test_a_recipe_chooses_among_the_four_methods(words, kind):
    assert type(read(Config, [*NEEDED, *words]).adapter.build()).__name__ == kind


def test_what_is_wrong_with_a_methods_section_is_told_by_its_own_key():
    with pytest.raises(ConfigError) as caught:
        read(Config, [*NEEDED, "--adapter.method", "bottleneck", "--adapter.placment", "houlsby"])
    assert "adapter.placment: unknown key; did you mean 'placement'?" in str(caught.value)
    with pytest.raises(ConfigError, match=r"adapter: .*'bottelneck'"):
        read(Config, [*NEEDED, "--adapter.method", "bottelneck"])
