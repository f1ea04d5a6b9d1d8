from dataclasses import field

import pytest
import yaml

from peftkit.config.keys import section
from peftkit.config.reading import build, read, to_yaml
from peftkit.config.sections import DataSettings, ModelSettings
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.methods.adapter_section import Adapter, DefaultSettings
from peftkit.methods.lora.settings import Settings
from peftkit.runs.recipe import parse


@section
class Config:
    """A recipe's config."""

    model: ModelSettings
    data: DataSettings
    adapter: Adapter = field(default_factory=DefaultSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    run_dir: str = "runs/x"
    seed: int = 0


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


def test_a_switch_needs_no_value_and_leaves_the_next_option_alone():
    words = [*NEEDED, "--train.auto-batch", "--train.epochs", "2", "--data.packing", "false"]
    config = read(Config, words)
    assert (config.train.auto_batch, config.train.epochs) == (True, 2)
    assert config.data.packing is False
    assert read(Config, [*NEEDED, "--train.restore_best=false"]).train.restore_best is False


def test_a_list_is_several_words_or_one_yaml_list():
    for words in (["a.jsonl", "b.jsonl"], ["[a.jsonl, b.jsonl]"]):
        config = read(Config, ["--model.source", "m", "--data.train", *words])
        assert config.data.train == ["a.jsonl", "b.jsonl"]
    assert read(Config, [*NEEDED, "--train.trackers", "wandb"]).train.trackers == ["wandb"]
    one = read(Config, [*NEEDED, "--adapter.target_modules", "q_proj"])
    assert one.adapter.target_modules == ["q_proj"]
    assert read(Config, [*NEEDED, "--adapter.target_modules", "all-linear"]) == read(Config, NEEDED)


def test_null_is_no_value_and_none_is_a_text():
    words = [*NEEDED, "--train.clip_norm", "null", "--model.attention", "null"]
    assert read(Config, words).train.clip_norm is None
    with pytest.raises(ConfigError, match=r"model\.quantization: input should be 'int8'"):
        read(Config, [*NEEDED, "--model.quantization", "None"])


def test_a_key_for_text_takes_a_word_that_looks_like_a_number():
    config = read(Config, [*NEEDED, "--run_dir", "2024", "--data.system", "2024-01-01"])
    assert (config.run_dir, config.data.system) == ("2024", "2024-01-01")
    assert read(Config, [*NEEDED, "--data.evaluation", "0.1"]).data.evaluation == 0.1
    assert read(Config, [*NEEDED, "--train.precision", "no"]).train.precision == "no"


def test_a_section_with_one_required_key_takes_that_key_alone(tmp_path):
    assert read(Config, ["--model", "m", "--data", "d.jsonl"]) == read(Config, NEEDED)
    words = write(tmp_path, "model: {source: a, quantization: nf4}\ndata: {train: d}\n")
    model = read(Config, [*words, "--model", "b"]).model
    assert (model.source, model.quantization) == ("b", "nf4")


def test_an_entry_of_a_mapping_keeps_its_hyphens():
    config = read(Config, [*NEEDED, "--data.columns.my-text", "review", "--data.max-length", "9"])
    assert (config.data.columns, config.data.max_length) == ({"my-text": "review"}, 9)


def test_every_error_is_told_at_once_with_the_nearest_key(tmp_path):
    words = write(
        tmp_path,
        "model: {sorce: a}\ndata: {train: d}\ntrain: {batch_size: 0, lerning_rate: 1e-4}\nsed: 1\n",
    )
    with pytest.raises(ConfigError) as caught:
        read(Config, [*words, "--adapter.r", "many", "--adapter.lora_dropout", "1.5"])
    text = str(caught.value)
    assert "7 errors" in text
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
        parse(Config, [*NEEDED, "--train.epochs", "0"], "recipe.py")
    assert ended.value.code == 2
    assert "train.epochs: input should be greater than 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        parse(Config, ["--help"], "recipe.py")
    assert ended.value.code == 0
    assert "--train.learning_rate NUMBER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epochs", "1"], "'train.epochs' is not an option"),
        (["--train.epochs"], "--train.epochs needs a value"),
        (["--config", "/nowhere.yaml"], "cannot read the config /nowhere.yaml"),
        ([*NEEDED, "--seed", "1", "2"], "--seed takes one value, not 2: 1 2"),
        ([*NEEDED, "--train.epochs", "--train.auto_batch"], "--train.epochs needs a value"),
        ([*NEEDED, "--adapter", "prefix"], "--adapter takes keys and values, such as"),
        ([*NEEDED, "--train.no-auto-batch"], "unknown key; write --train.auto_batch false"),
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
    assert Settings(r=4, options={"use_dora": True}).build().use_dora


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


def test_another_method_over_a_config_names_the_keys_that_do_not_belong_to_it(tmp_path):
    text = "model: {source: m}\ndata: {train: d}\nadapter: {method: lora, r: 16, lora_alpha: 32}\n"
    words = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read(Config, [*words, "--adapter.method", "prefix"])
    assert str(caught.value).splitlines()[1] == (
        "  adapter: method prefix does not have r (lora), lora_alpha (lora, adalora); remove what "
        "belongs to another method, or replace the section: --adapter '{method: prefix}'"
    )
    assert read(Config, [*words, "--adapter", "{method: prefix}"]).adapter.method == "prefix"


def test_what_is_wrong_with_a_methods_section_is_told_by_its_own_key():
    with pytest.raises(ConfigError) as caught:
        read(Config, [*NEEDED, "--adapter.method", "bottleneck", "--adapter.placment", "houlsby"])
    assert "adapter.placment: unknown key; did you mean 'placement'?" in str(caught.value)
    with pytest.raises(ConfigError, match=r"adapter: .*'bottelneck'"):
        read(Config, [*NEEDED, "--adapter.method", "bottelneck"])
