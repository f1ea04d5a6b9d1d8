"""AdaLoRA's schedule, importance, penalty and pruning; in our loop, in a loop of one's own, and in
transformers.Trainer.
"""

import copy
from fractions import Fraction

import peft
import pytest
import torch
from peft.tuners.adalora import RankAllocator
from transformers import Trainer, TrainingArguments

import peftkit
from peftkit.data.padding import PadRight
from peftkit.errors import CheckpointError, ConfigError
from peftkit.files import read_tensors
from peftkit.methods.adalora import layer as adalora
from peftkit.methods.adalora.budget import Allocation, budget, penalty_gradient
from peftkit.training.evaluation import evaluate
from peftkit.training.metrics_log import read_metrics
from tests.conftest import logits, randomize
from tests.training.job import launch, own_port, ragged_examples, train, trained
from tests.training.test_loop import CrashAt, CrashError

MATRICES = 14  # linear layers of the tiny Llama
RAGGED = ragged_examples(5, seed=2)


def config(**changes):
    sizes = {
        "init_r": 4,
        "target_r": 2,
        "total_step": 100,
        "tinit": 2,
        "tfinal": 3,
        "lora_alpha": 8,
    }
    return peftkit.AdaLoraConfig(**(sizes | changes))


def total(ranks):
    return sum(ranks.values())


def moments(optimizer):
    return [value for state in optimizer.state.values() for value in state.values() if value.ndim]


# the schedule


def test_the_adalora_budget_falls_cubically_as_in_the_paper():
    initial, target, tinit, tfinal, steps = 168, 112, 10, 20, 100
    for step in range(tinit, steps - tfinal):
        rest = 1 - Fraction(step - tinit, steps - tfinal - tinit)
        exact = target + (initial - target) * rest**3
        assert 0 <= exact - budget(step, initial, target, tinit, tfinal, steps) < 1
    curve = [budget(step, initial, target, tinit, tfinal, steps) for step in range(steps + 1)]
    assert curve == sorted(curve, reverse=True)
    assert curve[: tinit + 1] == [initial] * (tinit + 1)
    assert curve[steps - tfinal :] == [target] * (tfinal + 1)


def test_the_adalora_budget_equals_pefts(backbone):
    model = peftkit.attach(backbone, config(tinit=10, tfinal=20, total_step=100))
    theirs = RankAllocator(model.base_model.model, model.peft_config["default"], "default")
    for step in range(101):
        expected, _ = theirs.budget_schedule(step)
        assert budget(step, theirs.init_bgt, theirs.target_bgt, 10, 20, 100) == expected


# importance


def test_adalora_importance_equals_that_of_a_straightforward_implementation(backbone):
    """Eq. 7 to 10 in float64, weight by weight, over gradients drawn at random."""
    setting = config(init_r=3, target_r=1, orth_reg_weight=0.0, beta1=0.7, beta2=0.6, tinit=50)
    model = randomize(peftkit.attach(backbone, setting), 0.1)
    allocation = Allocation(model, torch.optim.SGD(model.parameters(), 0.1), 100)
    smooth, uncertain = {}, {}
    for step in range(1, 6):
        for name, parameter in trained_parameters(model):
            parameter.grad = torch.randn_like(parameter)
            sensitivity = (parameter.detach().double() * parameter.grad.double()).abs()
            before = smooth.get(name, torch.zeros_like(sensitivity))
            smooth[name] = 0.7 * before + 0.3 * sensitivity
            before = uncertain.get(name, torch.zeros_like(sensitivity))
            uncertain[name] = 0.6 * before + 0.4 * (sensitivity - smooth[name]).abs()
        allocation.before_step()
        allocation.after_step(step)
    for (name, layer), found in zip(
        allocation.layers.items(), allocation.importance(), strict=True
    ):
        for triplet in range(3):
            key = f"base_model.model.{name}.%s.default"
            score = {
                n: smooth[key % n] * uncertain[key % n] for n in ("lora_A", "lora_E", "lora_B")
            }
            expected = score["lora_E"][triplet, 0]
            expected = expected + sum(score["lora_A"][triplet]) / layer.in_features
            expected = expected + sum(score["lora_B"][:, triplet]) / layer.out_features
            assert float(found[triplet]) == pytest.approx(float(expected), rel=1e-4)


def trained_parameters(model):
    return [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]


def test_the_adalora_budget_is_exact_with_tied_triplets_and_unused_layers(backbone):
    """PEFT drops all that are no better than the threshold, here everything, and cannot add a
    gradient of None.
    """
    model = peftkit.attach(backbone, config(tinit=0, tfinal=0, orth_reg_weight=0.0))
    allocation = Allocation(model, torch.optim.SGD(model.parameters(), 0.1), 8)
    for step in range(1, 9):
        allocation.before_step()
        allocation.after_step(step)
        kept = list(allocation.rank_map()[step].values())
        assert sum(kept) == allocation.budget(step)
    assert total(adalora.ranks(model)) == 2 * MATRICES


def test_ranks_that_are_the_target_already_do_not_fall(backbone, ids):
    """PEFT: kthvalue of 0 (peft#2337)."""
    model = peftkit.attach(backbone, config(init_r=3, target_r=3))
    allocation = Allocation(model, torch.optim.SGD(model.parameters(), 0.1), 5)
    assert allocation.is_final
    for step in range(1, 6):
        model(ids, labels=ids).loss.backward()
        allocation.before_step()
        assert not allocation.after_step(step)
    assert set(adalora.ranks(model).values()) == {3}
    assert model.peft_config["default"].rank_pattern is None


# the penalty


def test_the_gradient_of_the_orthogonality_penalty_is_autograds():
    matrix = torch.randn(4, 9, requires_grad=True)
    for kept in (torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, True])):
        rows = matrix[kept]
        norm = (rows @ rows.T - torch.eye(len(rows))).norm()
        (expected,) = torch.autograd.grad(0.7 * norm, matrix)
        assert torch.allclose(penalty_gradient(matrix.detach(), 0.7, kept), expected, atol=1e-5)
    orthogonal = torch.eye(4, 9)
    assert torch.equal(penalty_gradient(orthogonal, 0.7), torch.zeros(4, 9))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_orthogonality_penalty_is_the_one_that_peft_adds_to_the_loss(llama_dir, ids):
    setting = config(
        target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", orth_reg_weight=0.3
    )
    ours = randomize(
        peftkit.attach(peftkit.load_backbone(llama_dir, dtype=torch.float32), setting), 0.2
    )
    theirs = peft.get_peft_model(
        peftkit.load_backbone(llama_dir, dtype=torch.float32), copy.deepcopy(setting)
    )
    with torch.no_grad():
        for (_, mine), (_, other) in zip(
            trained_parameters(ours), trained_parameters(theirs), strict=True
        ):
            other.copy_(mine)
    allocation = Allocation(ours, torch.optim.SGD(ours.parameters(), 0.1), 100)
    ours(ids, labels=ids).loss.backward()
    theirs(ids, labels=ids).loss.backward()
    assert not any(
        torch.equal(a.grad, b.grad) for (n, a), (_, b) in pairs(ours, theirs) if "lora_E" not in n
    )
    allocation.before_step()
    for (name, mine), (_, other) in pairs(ours, theirs):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5), name


def pairs(a, b):
    return zip(trained_parameters(a), trained_parameters(b), strict=True)


def test_the_orthogonality_penalty_works_without_a_task_type(backbone, ids):
    """PEFT's forward without one goes past the tuner, and nothing is ever regularised."""
    model = peftkit.attach(backbone, config(orth_reg_weight=1.0))
    model.peft_config["default"].task_type = None
    optimizer = torch.optim.Adam([p for _, p in trained_parameters(model)], 0.02)
    allocation = Allocation(model, optimizer, 100)

    def distance():
        matrices = [
            p.detach() if "lora_A" in n else p.detach().T
            for n, p in trained_parameters(model)
            if "lora_E" not in n
        ]
        return sum(float((m @ m.T - torch.eye(len(m))).norm()) for m in matrices) / len(matrices)

    before = distance()
    for step in range(1, 31):
        model(ids, labels=ids).loss.backward()
        allocation.before_step()
        optimizer.step()
        allocation.after_step(step)
        optimizer.zero_grad()
    assert distance() < 0.3 * before


# in our loop


def test_adalora_parameters_and_optimizer_moments_shrink_in_the_training_loop(
    llama_dir, tmp_path, ids
):
    """In bfloat16 on 4 bits, with accumulation and clipping."""
    cut = {"batch_size": 1, "accumulate": 2, "epochs": 0.5, "evaluate_every": 2}
    settings = cut | {"precision": "auto", "clip_norm": 0.5}
    model, outcome = train(
        tmp_path,
        llama_dir,
        settings,
        quantization="nf4",
        dtype="bfloat16",
        adapter=config(tinit=1, tfinal=2),
        evaluation=RAGGED,
    )
    assert total(adalora.ranks(model)) == 2 * MATRICES
    assert len(set(adalora.ranks(model).values())) > 1
    assert model.peft_config["default"].total_step == outcome.total_steps == 6
    record = peftkit.record(model)["allocation"]
    assert (record["initial"], record["target"], record["total_steps"]) == (
        4 * MATRICES,
        2 * MATRICES,
        6,
    )
    shapes = {
        name: value.shape
        for name, value in read_tensors(outcome.checkpoint / "trainable.safetensors").items()
    }
    assert shapes == {name: value.shape for name, value in trained(model).items()}
    saved = read_tensors(outcome.checkpoint / "optimizer.safetensors")
    assert sorted(
        value.shape for name, value in saved.items() if name.endswith("exp_avg")
    ) == sorted(shapes.values())
    assert outcome.best_step in (
        4,
        6,
    )  # no evaluation of a larger model counts: the budget is final at step 4
    expected = logits(model, ids)
    loaded = peftkit.load(peftkit.detach(model), outcome.checkpoint / "adapter")
    if outcome.best_step == 6:
        assert torch.equal(logits(loaded, ids), expected)
    assert total(adalora.ranks(loaded)) == 2 * MATRICES


def test_the_logged_loss_does_not_contain_the_orthogonality_penalty(llama_dir, tmp_path):
    curves = {}
    for weight in (0.0, 1000.0):
        train(
            tmp_path / str(weight),
            llama_dir,
            {"batch_size": 22},
            adapter=config(orth_reg_weight=weight, tinit=0, tfinal=0),
        )
        (entry,) = [
            entry
            for entry in read_metrics(tmp_path / str(weight) / "metrics.jsonl")
            if entry["kind"] == "train"
        ]
        curves[weight] = (entry["loss"], entry["gradient_norm"])
    assert curves[0.0] == curves[1000.0]


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_training_after_pruning_equals_training_with_singular_values_held_at_zero(
    llama_dir, ids, optimizer_class
):
    found = {}
    for in_place in (True, False):
        torch.manual_seed(3)
        model = peftkit.attach(
            peftkit.load_backbone(llama_dir, dtype=torch.float32), config(lora_dropout=0.1)
        )
        optimizer = optimizer_class(
            [p for _, p in trained_parameters(model)], 0.01, weight_decay=0.1
        )
        allocation = Allocation(model, optimizer, 20, in_place=in_place)
        curve = []
        for step in range(1, 21):
            torch.manual_seed(step)
            loss = model(
                ids, labels=ids
            ).loss  # the last loss, and its graph, live on while the parameters shrink
            loss.backward()
            allocation.before_step()
            optimizer.step()
            assert allocation.after_step(step) == (step == 17)
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        sizes = (
            sum(p.numel() for _, p in trained_parameters(model)),
            sum(m.numel() for m in moments(optimizer)),
        )
        allocation.finish()
        found[in_place] = model, curve, sizes
    (pruned, curve, small), (masked, expected, large) = found[True], found[False]
    assert curve == pytest.approx(expected, abs=1e-5)
    assert small[0] < 0.6 * large[0]
    assert small[1] < 0.6 * large[1] or small[1] == large[1] == 0
    for (name, a), (_, b) in pairs(pruned, masked):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-5), name


def test_with_an_optimizer_state_of_another_layout_triplets_are_pruned_at_the_end(backbone, ids):
    model = peftkit.attach(backbone, config(tinit=0, tfinal=1))
    optimizer = torch.optim.Adafactor([p for _, p in trained_parameters(model)], 0.01)
    allocation = Allocation(model, optimizer, 4)
    for step in range(1, 5):
        model(ids, labels=ids).loss.backward()
        allocation.before_step()
        optimizer.step()
        allocation.after_step(step)
        optimizer.zero_grad()
    assert total(adalora.ranks(model)) == 4 * MATRICES
    expected = logits(model, ids)
    allocation.finish()
    assert total(adalora.ranks(model)) == 2 * MATRICES
    assert torch.allclose(logits(model, ids).float(), expected.float(), atol=0.02)


@pytest.mark.parametrize("crashes", [(4, 9), (9,)])
def test_a_resumed_adalora_run_ends_bit_for_bit_where_an_uninterrupted_one_ends(
    llama_dir, tmp_path, crashes
):
    """From before the budget is final, at step 8, and from after it."""
    settings = {"batch_size": 2, "save_every": 3, "evaluate_every": 4, "weight_decay": 0.1}
    options = {"adapter": config(lora_dropout=0.1), "evaluation": RAGGED}
    whole, outcome = train(tmp_path / "whole", llama_dir, settings, **options)
    for step in crashes:
        with pytest.raises(CrashError):
            train(tmp_path / "cut", llama_dir, settings, callbacks=[CrashAt(step)], **options)
    torch.rand(100)
    resumed, again = train(tmp_path / "cut", llama_dir, settings, **options)
    expected, found = trained(whole), trained(resumed)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert (again.best_step, again.best_value) == (outcome.best_step, outcome.best_value)
    for file in (
        "optimizer.safetensors",
        "method.safetensors",
        "adapter/adapter_model.safetensors",
    ):
        first, second = (read_tensors(each.checkpoint / file) for each in (outcome, again))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_two_processes_allocate_ranks_as_one_with_twice_the_batch(llama_dir, tmp_path):
    sizes = {
        "init_r": 4,
        "target_r": 2,
        "tinit": 1,
        "tfinal": 2,
        "lora_alpha": 8,
        "total_step": 100,
    }
    arguments = {"model_dir": str(llama_dir), "run_dir": str(tmp_path / "two"), "adalora": sizes}
    two = launch(
        ["--cpu", "--num_processes", "2", "--main_process_port", own_port()],
        arguments | {"settings": {"batch_size": 2, "epochs": 1}},
    )
    assert two.returncode == 0, two.stderr
    train(
        tmp_path / "one",
        llama_dir,
        {"batch_size": 4, "epochs": 1},
        adapter=peftkit.AdaLoraConfig(**sizes),
    )
    curves = [
        [
            entry["loss"]
            for entry in read_metrics(tmp_path / run / "metrics.jsonl")
            if entry["kind"] == "train"
        ]
        for run in ("one", "two")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_an_adalora_schedule_longer_than_the_run_is_refused(llama_dir, tmp_path):
    with pytest.raises(
        ConfigError,
        match="no step to fall in: tinit is 8 and tfinal 3, and the training has 11 steps",
    ):
        train(tmp_path, llama_dir, {"batch_size": 2}, adapter=config(tinit=8))


# in transformers.Trainer


def trainer(model, path, callback=None, **changes):
    options = {
        "output_dir": str(path),
        "use_cpu": True,
        "report_to": [],
        "max_steps": 11,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": 1,
        "data_seed": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    return Trainer(
        model,
        TrainingArguments(**(options | changes)),
        train_dataset=ragged_examples(),
        eval_dataset=RAGGED,
        data_collator=PadRight(2),
        callbacks=[callback or peftkit.AdaLoraCallback()],
    )


def adapted(llama_dir, **changes):
    torch.manual_seed(0)
    return peftkit.attach(
        peftkit.load_backbone(llama_dir, dtype=torch.float32), config(lora_dropout=0.1, **changes)
    )


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_adalora_trains_and_resumes_under_trainer_and_reports_plain_losses(
    llama_dir, tmp_path, ids, caplog
):
    whole = trainer(adapted(llama_dir, orth_reg_weight=10.0), tmp_path)
    whole.train()
    model = whole.model
    assert total(adalora.ranks(model)) == 2 * MATRICES
    assert model.peft_config["default"].total_step == 11
    assert sum(m.numel() for m in moments(whole.optimizer)) == 2 * sum(
        p.numel() for _, p in trained_parameters(model)
    )
    assert not caplog.records
    from accelerate import Accelerator

    reported = whole.evaluate()["eval_loss"]
    batch_mean = evaluate(model, RAGGED, PadRight(2), Accelerator(cpu=True), batch_size=8)["loss"]
    assert reported == pytest.approx(batch_mean, rel=1e-4)
    expected = trained(model)
    for step in (6, 9):  # before the budget is final, and after it
        resumed = trainer(adapted(llama_dir, orth_reg_weight=10.0), tmp_path)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        found = trained(resumed.model)
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    loaded = peftkit.load(
        peftkit.load_backbone(llama_dir, dtype=torch.float32), tmp_path / "checkpoint-11"
    )
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_trainers_best_model_is_within_the_adalora_budget_and_no_loss_has_the_penalty(
    llama_dir, tmp_path
):
    curves = {}
    for weight in (0.0, 1000.0):
        one = trainer(
            adapted(llama_dir, orth_reg_weight=weight),
            tmp_path / str(weight),
            load_best_model_at_end=True,
        )
        one.train()
        first = next(entry for entry in one.state.log_history if "loss" in entry)
        curves[weight] = first["loss"], first["grad_norm"]
        assert one.state.best_global_step in (9, 11)  # after steps 3 and 6 the model is too large
        assert total(adalora.ranks(one.model)) == 2 * MATRICES
    assert curves[0.0] == curves[1000.0]


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_the_adalora_callback_refuses_what_it_cannot_do(llama_dir, tmp_path):
    with pytest.raises(ConfigError, match="no trainable AdaLoRA adapter"):
        trainer(
            peftkit.attach(peftkit.load_backbone(llama_dir), peftkit.LoraConfig(r=2)), tmp_path
        ).train()
    trainer(adapted(llama_dir), tmp_path, max_steps=6, save_steps=4).train()
    (tmp_path / "checkpoint-4" / "adalora.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adalora.safetensors of step 4"):
        trainer(adapted(llama_dir), tmp_path, max_steps=6).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )


def test_an_allocation_leaves_models_without_adalora_untouched(backbone):
    model = peftkit.attach(backbone, peftkit.LoraConfig(r=2))
    allocation = Allocation(model, torch.optim.SGD(model.parameters(), 0.1), 5)
    allocation.before_step()
    assert not allocation.after_step(5)
    assert allocation.is_final
    assert allocation.state() == {}
    assert "allocation" not in peftkit.record(model)
