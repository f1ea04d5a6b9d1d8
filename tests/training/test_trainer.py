"""What attach returns trains under transformers.Trainer as it is, on 4- and 8-bit backbones too."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

import peftkit
from peftkit.data.padding import PadRight
from tests.contract import METHODS
from tests.training.job import ragged_examples, trained


@pytest.mark.filterwarnings("ignore")  # Trainer's own
@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "houlsby", "prefix"])
def test_the_same_model_trains_under_transformers_trainer(
    llama_dir, tmp_path, method, quantization, checkpointing
):
    model = peftkit.attach(
        peftkit.load_backbone(llama_dir, quantization=quantization), METHODS[method]()
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        max_steps=24,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=24,
        remove_unused_columns=False,
        disable_tqdm=True,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
    )
    trainer = Trainer(model, arguments, train_dataset=ragged_examples(), data_collator=PadRight(2))
    trainer.train()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    least = {"lora": 0.95, "houlsby": 0.97, "prefix": 0.99}[method]
    assert sum(curve[-3:]) < least * sum(
        curve[:3]
    )  # 5.3 is the floor that the frozen random head sets
    expected = trained(model)
    loaded = peftkit.load(peftkit.detach(model), tmp_path / "checkpoint-24", trainable=True)
    assert all(torch.equal(value, trained(loaded)[name]) for name, value in expected.items())
