"""Two processes on the CPU (gloo): DDP, FSDP2, and what each has to give back."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from yaml import safe_load

import peftkit
from peftkit.config.reading import build
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.files import read_json, read_tensors
from peftkit.runs.recipe import RecipeSettings
from peftkit.training import fsdp, model_checks
from peftkit.training.accelerator import make_accelerator
from peftkit.training.launch_checks import check_launch
from peftkit.training.metrics_log import read_metrics
from tests.training import job
from tests.training.job import own_port, ragged_examples, train, trained

PRESETS = Path(__file__).parents[2] / "recipes" / "accelerate"


def fsdp_environment():
    """What `accelerate launch` puts into the environment for the preset; on a CPU it leaves that
    out.
    """
    options = safe_load((PRESETS / "fsdp2_qlora.yaml").read_text())["fsdp_config"]
    values = {
        f"FSDP_{key.removeprefix('fsdp_').upper()}": str(value).lower()
        for key, value in options.items()
    }
    return {"ACCELERATE_USE_FSDP": "true", **values}


def launch(run_dir, model_dir, settings, *, fsdp=False, flags=None, ok=True, **arguments):
    """Run the job on two processes."""
    given = {
        "run_dir": str(run_dir),
        "model_dir": str(model_dir),
        "settings": settings,
        "dropout": 0.0,
        **arguments,
    }
    variables = fsdp_environment() if fsdp else {}
    done = job.launch(flags, given) if flags else job.launch_two(given, **variables)
    assert (done.returncode == 0) == ok, done.stderr


def lines(run_dir, kind="train"):
    return [
        entry for entry in read_metrics(Path(run_dir) / "metrics.jsonl") if entry["kind"] == kind
    ]


def losses(run_dir, kind="train"):
    return [entry["loss"] for entry in lines(run_dir, kind)]


# the same numbers


CUT = {
    "batch_size": 2,
    "accumulate": 2,
    "epochs": 2,
    "evaluate_every": 2,
    "max_steps": 4,
    "clip_norm": 0.05,
}
WHOLE = CUT | {"batch_size": 8, "accumulate": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "dtype", "fsdp", "tolerance"),
    [
        (None, "float32", False, 1e-5),
        ("nf4", "float32", False, 1e-5),
        (None, "float32", True, 1e-5),
        ("nf4", "float32", True, 1e-5),
        (
            None,
            "bfloat16",
            True,
            1e-3,
        ),  # the passes are cut otherwise, and bfloat16 rounds each otherwise
        ("nf4", "bfloat16", True, 1e-3),
    ],
)
def test_two_processes_have_the_losses_of_one(
    llama_dir, tmp_path, quantization, dtype, fsdp, tolerance
):
    """With the same global batch: losses, gradient norms, evaluations, trained weights, and the
    adapter that is saved.
    """
    options = {"quantization": quantization, "dtype": dtype}
    launch(tmp_path / "two", llama_dir, CUT, fsdp=fsdp, **options, evaluate=7, saves=True)
    model, outcome = train(
        tmp_path / "one",
        llama_dir,
        WHOLE,
        dropout=0.0,
        evaluation=ragged_examples(7, seed=3),
        **options,
    )
    for kind, key in (("train", "loss"), ("train", "gradient_norm"), ("evaluation", "loss")):
        found = [[line[key] for line in lines(tmp_path / run, kind)] for run in ("two", "one")]
        assert found[0] == pytest.approx(
            found[1], rel=tolerance if key == "loss" else 30 * tolerance
        )
    expected = {name: value for name, value in trained(model).items()}
    checkpoint = tmp_path / "two" / "checkpoints" / outcome.checkpoint.name
    weights = read_tensors(checkpoint / "trainable.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(weights[name], value, rtol=0.05, atol=100 * tolerance), name
    for adapter in (
        checkpoint / "adapter",
        tmp_path / "two" / "adapter",
    ):  # of the loop, and of the job after the loop
        tensors = read_tensors(adapter / "adapter_model.safetensors")
        assert len(tensors) == len(expected)
        for name, value in tensors.items():
            assert torch.equal(value, weights[name.replace(".weight", ".default.weight")])
        peftkit.load(peftkit.load_backbone(llama_dir, quantization=quantization), adapter)


@pytest.mark.slow
def test_two_processes_weigh_their_rows_as_one_does(llama_dir, tmp_path):
    weights = [2.0, 1.0, 0.25, 3.0] * 5  # the last two of 22 rows have none
    launch(tmp_path / "two", llama_dir, CUT, weights=weights, evaluate=7)
    evaluation = ragged_examples(7, seed=3)
    train(tmp_path / "one", llama_dir, WHOLE, dropout=0.0, weights=weights, evaluation=evaluation)
    for key in ("loss", "gradient_norm", "items"):
        two, one = ([line[key] for line in lines(tmp_path / run)] for run in ("two", "one"))
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_the_cpu_preset_starts_two_processes_and_another_cut_is_the_same_step(llama_dir, tmp_path):
    """Passes of 1 x 4 on each of two processes, started by a config file, are one pass of 8."""
    preset = tmp_path / "two.yaml"
    preset.write_text(
        (PRESETS / "cpu.yaml").read_text().replace("num_processes: 1", "num_processes: 2")
    )
    cut = {"batch_size": 1, "accumulate": 4, "max_steps": 3}
    port = ["--main_process_port", own_port()]
    launch(tmp_path / "two", llama_dir, cut, flags=["--config_file", str(preset), *port])
    train(tmp_path / "one", llama_dir, {"batch_size": 8, "max_steps": 3}, dropout=0.0)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert (
        read_json(tmp_path / "two" / "checkpoints" / "step-000003" / "state.json")["processes"] == 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prefix", "bottleneck"])
def test_other_methods_recomputed_activations_and_early_stopping_under_fsdp(
    llama_dir, tmp_path, method
):
    """Of six steps, four are made, since the second evaluation is worse; the weights of the first
    are those that are left.
    """
    settings = {
        "gradient_checkpointing": True,
        "best": "accuracy",
        "early_stopping": 1,
        "max_steps": 6,
    }
    launch(
        tmp_path / "two",
        llama_dir,
        CUT | settings,
        fsdp=True,
        method=method,
        quantization="nf4",
        evaluate=7,
        saves=True,
        worsening=True,
    )
    model, outcome = train(
        tmp_path / "one",
        llama_dir,
        WHOLE | settings,
        quantization="nf4",
        adapter=job.ADAPTERS[method],
        evaluation=ragged_examples(7, seed=3),
        callbacks=[job.Disturbance(worsening=True)],
    )
    assert (len(losses(tmp_path / "two")), outcome.step, outcome.best_step) == (4, 4, 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    backbone = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    found = trained(peftkit.load(backbone, tmp_path / "two" / "adapter", trainable=True))
    assert found.keys() == trained(model).keys()
    assert all(
        torch.allclose(found[name], value, atol=1e-2) for name, value in trained(model).items()
    )


# going on


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_an_interrupted_run_goes_on_exactly(llama_dir, tmp_path, fsdp):
    """Parameters, both moments and dropout, from the middle of an epoch; then the best weights are
    taken.
    """
    settings = {
        "batch_size": 2,
        "epochs": 2,
        "max_steps": 8,
        "save_every": 2,
        "evaluate_every": 4,
        "weight_decay": 0.1,
    }
    options = {"fsdp": fsdp, "dropout": 0.3, "evaluate": 5}
    launch(tmp_path / "whole", llama_dir, settings, **options)
    launch(tmp_path / "cut", llama_dir, settings, **options, crash_at=6, ok=False)
    assert len(losses(tmp_path / "cut")) == 5
    launch(tmp_path / "cut", llama_dir, settings, **options)
    checkpoints = [tmp_path / run / "checkpoints" / "step-000008" for run in ("whole", "cut")]
    for name in (
        "trainable.safetensors",
        "optimizer.safetensors",
        "adapter/adapter_model.safetensors",
    ):
        expected, found = (read_tensors(path / name) for path in checkpoints)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items()), name
    assert read_json(checkpoints[0] / "state.json")["progress"]["best_step"] in (4, 8)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


# presets and refusals


@pytest.mark.parametrize("name", ["cpu", "single_gpu", "ddp", "fsdp2_qlora", "zero3"])
def test_accelerate_reads_every_preset(name):
    assert (
        load_config_from_file(str(PRESETS / f"{name}.yaml")).compute_environment == "LOCAL_MACHINE"
    )


def preset(monkeypatch, **changes):
    for name, value in (fsdp_environment() | changes).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("quantization", "adapter", "changes", "message"),
    [
        ("int8", peftkit.LoraConfig(), {}, "cannot shard int8"),
        (None, peftkit.AdaLoraConfig(total_step=9), {}, "cannot see them in the shards"),
        (None, peftkit.LoraConfig(), {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        (
            None,
            peftkit.LoraConfig(),
            {"FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params: true is not supported",
        ),
    ],
)
def test_what_fsdp_cannot_do_is_refused(
    llama_dir, tmp_path, monkeypatch, quantization, adapter, changes, message
):
    model = peftkit.attach(peftkit.load_backbone(llama_dir, quantization=quantization), adapter)
    settings = TrainSettings()
    accelerator = make_accelerator(settings, model, tmp_path)
    model_checks.check_processes(settings, model, accelerator)
    preset(monkeypatch, **changes)
    with pytest.raises(ConfigError, match=message):
        model_checks.check_processes(settings, model, accelerator)


def test_trained_parameters_of_two_dtypes_are_refused_under_fsdp(llama_dir, tmp_path, monkeypatch):
    model = peftkit.attach(peftkit.load_backbone(llama_dir), peftkit.LoraConfig())
    accelerator = make_accelerator(TrainSettings(), model, tmp_path)
    preset(monkeypatch)
    model_checks.check_processes(TrainSettings(), model, accelerator)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="bfloat16, float32"):
        model_checks.check_processes(TrainSettings(), model, accelerator)
    assert not fsdp.is_in_use()  # one process has nobody to share with


def test_deepspeed_and_a_wrong_global_batch_are_refused(llama_dir, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is 16, but batch_size 4 x accumulate 3 x 1 process"):
        train(tmp_path, llama_dir, {"batch_size": 4, "accumulate": 3, "global_batch_size": 16})
    with pytest.raises(ConfigError, match="auto_batch works on one process"):
        check_launch(TrainSettings(auto_batch=True), None, processes=2)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for quantization, message in (
        (None, "does not train under DeepSpeed"),
        ("nf4", "does not partition bitsandbytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_launch(TrainSettings(), quantization)


@pytest.mark.parametrize(
    ("variables", "changes", "message"),
    [
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"model": {"source": "x", "quantization": "int8"}},
            "int8",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"adapter": {"method": "adalora"}},
            "AdaLoRA",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed"),
        (
            {"WORLD_SIZE": "2"},
            {"train": {"batch_size": 4, "global_batch_size": 4}},
            r"4 x accumulate 1 x 2 process",
        ),
        ({"WORLD_SIZE": "2"}, {"train": {"auto_batch": True}}, "one process only"),
    ],
)
def test_a_recipe_refuses_its_launch_before_it_loads_anything(
    monkeypatch, variables, changes, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    values = {"model": {"source": "x"}, "data": {"train": "y"}, "run_dir": "z"} | changes
    with pytest.raises(ConfigError, match=message):
        build(RecipeSettings, values, "a test")


def test_precisions_that_give_wrong_numbers_are_refused(monkeypatch, backbone):
    model_checks.check_precision("fp16", backbone)
    monkeypatch.setattr(backbone.config, "model_type", "t5")
    with pytest.raises(ConfigError, match="t5 overflows in float16"):
        model_checks.check_precision("fp16", backbone)
    model_checks.check_precision("bf16", backbone)
    with pytest.raises(ConfigError, match="t5 overflows in float16"):
        model_checks.check_precision("no", backbone.half())
