"""Complete models of forty architectures, tiny, with random weights, and inputs for them.

Small as they are (width 32, two to four layers), each has everything its kind has: a hybrid every
kind of layer, a mixture of experts a router and four experts, grouped queries fewer key-value
heads, an encoder-decoder two layers on each side.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers

VOCABULARY, LENGTH, LABELS = 96, 8, 3


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers with a configuration for it, and inputs of the right kind."""

    task: str
    family: str
    model_class: str
    settings: dict[str, Any]
    inputs: str = "text"  # or "image", "image and text", "wave", "spectrogram"

    def config(self):
        """Return the configuration."""
        settings = self.settings | ({"num_labels": LABELS} if "classification" in self.task else {})
        return getattr(transformers, f"{self.family}Config")(**settings)

    def model(self, seed=0):
        """Return the model in evaluation mode, float32; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model = getattr(transformers, self.model_class)(self.config()).float().eval()
            for parameter in (
                model.parameters()
            ):  # nothing may stay at zero or one: outputs should depend on all of it
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    def batch(self, labels=True, padding="none", seed=0):
        """Return two rows of inputs; `padding` ("none", "left", "right") hides two tokens of the
        second row's text.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batch = getattr(self, f"_{self.inputs.replace(' ', '_')}")(padding)
            targets = self._targets(batch)
        if labels:
            batch["labels"] = targets
        elif "seq2seq" in self.task:
            batch["decoder_input_ids"] = targets
        return batch

    def _text(self, padding):
        ids = torch.randint(4, 90, (2, LENGTH))
        mask = torch.ones_like(ids)
        if padding != "none":
            hidden = slice(0, 2) if padding == "left" else slice(-2, None)
            mask[1, hidden] = 0
            ids[1, hidden] = self.settings.get("pad_token_id", 0)
        return {"input_ids": ids, "attention_mask": mask}

    def _image(self, padding):
        return {"pixel_values": torch.randn(2, 3, 32, 32)}

    def _image_and_text(self, padding):
        batch = self._text(padding)
        batch["input_ids"][:, 2:6] = self.settings["image_token_index"]
        return batch | {"pixel_values": torch.randn(2, 3, 32, 32)}

    def _wave(self, padding):
        return {"input_values": torch.randn(2, 400)}

    def _spectrogram(self, padding):
        return {"input_features": torch.randn(2, 16, 32)}

    def _targets(self, batch):
        if self.task in ("sequence-classification", "image-classification"):
            return torch.tensor([0, 2])
        if "seq2seq" in self.task:
            return torch.randint(4, 90, (2, 6))
        ids, hidden = batch["input_ids"], batch["attention_mask"] == 0
        targets = (
            torch.randint(0, LABELS, ids.shape) if self.task == "token-classification" else ids
        )
        return targets.masked_fill(hidden, -100)


_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BODY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_TEXT = _TOKENS | _BODY | {"max_position_embeddings": 64}
_GROUPED = _TEXT | {"num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
}
_SEQ2SEQ = (
    _TOKENS | _SIDES | {"d_model": 32, "max_position_embeddings": 64, "decoder_start_token_id": 2}
)
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_IMAGE = _BODY | {"image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"


def _causal(family, **settings):
    return Architecture("causal-lm", family, f"{family}ForCausalLM", settings)


def _sequence(family, **settings):
    return Architecture(
        "sequence-classification", family, f"{family}ForSequenceClassification", settings
    )


def _token(family, **settings):
    return Architecture("token-classification", family, f"{family}ForTokenClassification", settings)


def _seq2seq(family, model_class=None, **settings):
    return Architecture(
        "seq2seq-lm", family, model_class or f"{family}ForConditionalGeneration", settings
    )


def _image(family, **settings):
    return Architecture(
        "image-classification", family, f"{family}ForImageClassification", settings, "image"
    )


_DEBERTA = _TEXT | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _causal("Llama", **_GROUPED),
    "gemma3": Architecture(
        "causal-lm",
        "Gemma3Text",
        "Gemma3ForCausalLM",
        _GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": [_SLIDING, _FULL],
            "query_pre_attn_scalar": 8,
        },
    ),
    "qwen3": _causal("Qwen3", **_GROUPED, head_dim=16),
    "gpt2": Architecture(
        "causal-lm",
        "GPT2",
        "GPT2LMHeadModel",
        _TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": _causal("GPTNeoX", **_TEXT),
    "phi": _causal("Phi", **_TEXT),
    "falcon": _causal(
        "Falcon", **_TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "bloom": _causal("Bloom", **_TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "mixtral": _causal("Mixtral", **_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _causal("Qwen3Moe", **_GROUPED, **_EXPERTS, head_dim=8),
    "gpt_oss": _causal(
        "GptOss",
        **_GROUPED,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        layer_types=[_SLIDING, _FULL],
    ),
    "deepseek_v3": _causal(
        "DeepseekV3",
        **_TEXT,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=8,
        num_key_value_heads=4,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
    ),
    "mamba2": _causal(
        "Mamba2",
        **_TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=2,
        chunk_size=4,
    ),
    "jamba": _causal(
        "Jamba",
        **_GROUPED | {"num_hidden_layers": 4},
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "qwen3_next": _causal(
        "Qwen3Next",
        **_GROUPED,
        **_EXPERTS,
        head_dim=8,
        shared_expert_intermediate_size=16,
        layer_types=[_LINEAR, _FULL],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "bert": _sequence("Bert", **_TEXT),
    "roberta": _sequence("Roberta", **_TEXT | {"pad_token_id": 1, "bos_token_id": 0}),
    "deberta-v2": _sequence("DebertaV2", **_DEBERTA),
    "modernbert": _sequence(
        "ModernBert",
        **_TEXT,
        local_attention=4,
        layer_types=[_FULL, _SLIDING],
        cls_token_id=3,
        sep_token_id=3,
    ),
    "albert": _sequence("Albert", **_TEXT, embedding_size=16),
    "distilbert": _sequence(
        "DistilBert",
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
    ),
    "electra": _sequence("Electra", **_TEXT, embedding_size=16),
    "xlnet": _sequence("XLNet", **_TOKENS, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "longformer": _sequence("Longformer", **_TEXT | {"pad_token_id": 1}, attention_window=4),
    "bert-token": _token("Bert", **_TEXT),
    "deberta-v2-token": _token("DebertaV2", **_DEBERTA),
    "t5": _seq2seq("T5", **_T5),
    "flan-t5": _seq2seq(
        "T5", **_T5 | {"d_kv": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "bart": _seq2seq("Bart", **_SEQ2SEQ),
    "mbart": _seq2seq("MBart", **_SEQ2SEQ),
    "pegasus": _seq2seq("Pegasus", **_SEQ2SEQ),
    "marian": _seq2seq("Marian", "MarianMTModel", **_SEQ2SEQ, forced_eos_token_id=2),
    "vit": _image("ViT", **_IMAGE),
    "swin": _image(
        "Swin",
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "dinov2": _image("Dinov2", **_IMAGE | {"layerscale_value": 0.5}),
    "beit": _image("Beit", **_IMAGE, use_relative_position_bias=True),
    "convnext": _image("ConvNext", **_STAGES, layer_scale_init_value=0.5, image_size=32),
    "resnet": _image(
        "ResNet", embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[2, 1, 1, 1]
    ),
    "clip": _image("CLIP", vision_config=_IMAGE, text_config=_TEXT, projection_dim=16),
    "whisper": Architecture(
        "speech-seq2seq",
        "Whisper",
        "WhisperForConditionalGeneration",
        _TOKENS
        | _SIDES
        | {
            "d_model": 32,
            "num_mel_bins": 16,
            "max_source_positions": 16,
            "max_target_positions": 64,
            "decoder_start_token_id": 1,
        },
        "spectrogram",
    ),
    "wav2vec2": Architecture(
        "sequence-classification",
        "Wav2Vec2",
        "Wav2Vec2ForSequenceClassification",
        _BODY
        | {
            "conv_dim": [16, 16],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 16,
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
        },
        "wave",
    ),
    "llava": Architecture(
        "causal-lm",
        "Llava",
        "LlavaForConditionalGeneration",
        {
            "text_config": _GROUPED | {"model_type": "llama"},
            "image_token_index": 95,
            "vision_config": _IMAGE
            | {"model_type": "clip_vision_model", "patch_size": 16, "num_hidden_layers": 3},
            "vision_feature_layer": -2,
            "pad_token_id": 0,
        },
        "image and text",
    ),
}
