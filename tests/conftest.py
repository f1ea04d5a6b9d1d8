"""Tiny but complete transformers models, made on the spot, and a tokenizer with a chat template."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks the Hub for something is wrong
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in the processes that a test starts

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import peftkit
from peftkit.runs import process

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread_a_seed_and_no_accelerator(monkeypatch):
    # On matrices this small a second thread only waits, hundreds of times as long as it computes.
    torch.set_num_threads(1)
    monkeypatch.setattr(process, "_use_all_cores", lambda: "1 CPU thread a process")
    torch.manual_seed(0)
    # Accelerate keeps one precision for the whole process.
    AcceleratorState._reset_state(reset_partial_state=True)


def llama_config(**changes):
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return LlamaConfig(**(sizes | heads | tokens | changes))


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory):
    """A two-layer Llama in bfloat16 with a tokenizer, as a directory."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config()).to(torch.bfloat16).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def byte_tokenizer():
    """A byte-level tokenizer without merges: every text has a token for each byte, and four special
    tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def backbone(llama_dir):
    return peftkit.load_backbone(llama_dir)


@pytest.fixture(params=[None, "nf4", "fp4", "int8"])
def any_backbone(request, llama_dir):
    return peftkit.load_backbone(llama_dir, quantization=request.param)


@pytest.fixture
def ids():
    return torch.randint(4, 320, (2, 12))


def randomize(model, scale=0.05):
    """Give every trained parameter values that make a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits
