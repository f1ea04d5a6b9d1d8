"""Make the default configuration of any transformers type tiny, without losing a kind of layer."""

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 96

# The size of every field of these names, wherever a configuration has one that is a number.
_SIZES = {
    32: """
        hidden_size d_model n_embd embedding_dim emb_dim dim embed_dim dim_model_base
        attention_hidden_size kv_channels lru_width word_embed_proj_dim pooler_hidden_size
        pooler_output_size projection_dim projection_size true_hidden_size hidden_size_global
        input_embedding_size output_embedding_size embedding_size d_latents prediction_head_size
        output_hidden_size out_hidden_size encoder_hidden_size cross_hidden_size mamba_d_ssm
        classifier_proj_size downsample_hidden_size projector_hidden_size hidden_dim
        decoder_hidden_size mamba_intermediate_size t2u_variance_predictor_embed_dim
        max_2d_position_embeddings image_size
    """,
    48: """
        intermediate_size d_ff dff n_inner ffn_dim dim_ff mlp_dim feed_forward_size
        ffn_hidden_size d_inner decoder_ffn_dim encoder_ffn_dim speech_encoder_intermediate_size
        t2u_decoder_ffn_dim t2u_encoder_ffn_dim dense_intermediate_size intermediate_size_mlp
    """,
    16: """
        moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size
        q_lora_rank intra_bottleneck_size prompt_mid_dim entity_emb_size
        hidden_size_per_layer_input router_hidden_size ple_embed_dim hc_lowrank conv_channels
        input_feat_per_channel num_mel_bins codevector_dim proj_codevector_dim xvector_output_dim
        adapter_rank
    """,
    8: """
        head_dim d_kv d_head dim_head attention_head_size global_head_dim index_head_dim
        qk_nope_head_dim v_head_dim kv_lora_rank o_lora_rank linear_head_dim linear_key_head_dim
        linear_value_head_dim mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim
        mamba_headdim cross_head_dim swa_head_dim time_step_rank mamba_dt_rank laurel_rank
        gated_norm_rank d_rel sliding_window sliding_window_size attention_window_size
        local_attention attention_chunk_size local_attention_window_len chunk_size
        mamba_chunk_size local_attn_chunk_length lsh_attn_chunk_length expert_capacity num_buckets
        swa_v_head_dim num_landmarks segment_means_seq_len pronunciation_embed_dim shape_embed_dim
    """,
    4: """
        num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        encoder_num_attention_heads decoder_num_attention_heads speech_encoder_attention_heads
        t2u_decoder_attention_heads t2u_encoder_attention_heads cross_num_attention_heads
        swa_num_attention_heads num_cross_attention_heads num_self_attention_heads index_n_heads
        linear_num_heads linear_num_value_heads mamba_n_heads mamba_num_heads qk_rope_head_dim
        num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num num_latents
        window_size patch_size block_size num_conv_pos_embedding_groups index_topk
        global_block_size num_global_tokens num_hash_functions keep_window_size local_radius
        attention_window num_experts_per_layer local_transformer_stride rotary_dim
    """,
    2: """
        num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers
        speech_encoder_layers t2u_decoder_layers t2u_encoder_layers depth num_blocks
        num_layers_per_stack num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k
        linear_num_key_heads num_random_blocks num_sparse_encoder_layers num_sparse_decoder_layers
        encoder_sparse_step num_global_layers num_feedforward_networks conf_num_hidden_layers
        heads_per_ngram num_register_tokens
    """,
    1: """
        first_k_dense_replace num_dense_layers n_group topk_group n_groups mamba_n_groups
        num_expert_group max_window_layers num_self_attends_per_block
    """,
    64: """
        max_position_embeddings n_positions n_ctx max_seq_len max_decoder_position_embeddings
        max_encoder_position_embeddings max_source_positions max_target_positions
        max_text_positions max_speech_positions context_length model_max_length
        t2u_max_position_embeddings left_max_position_embeddings relative_attention_max_distance
        xpath_unit_hidden_size rel_extent
    """,
    VOCABULARY: """
        vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input
        char_vocab_size t2u_vocab_size unit_hifi_gan_vocab_size pronunciation_vocab_size
        shape_vocab_size entity_vocab_size encoder_hash_byte_group_vocab num_hash_buckets
        audio_vocab_size codebook_vocab_size ngram_vocab_size_base composer_vocab_size
        unpadded_vocab_size
    """,
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
KEY_VALUE_HEADS = (
    "num_key_value_heads",
    "swa_num_key_value_heads",
    "decoder_num_key_value_heads",
    "num_kv_heads",
    "encoder_num_key_value_heads",
    "cross_num_key_value_heads",
    "num_query_groups",
    "num_global_key_value_heads",
)
NOT_BY_LAYER = (
    "moe_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "depths",
    "hidden_sizes",
    "num_heads",
    "sliding_windows",
)
TOKENS = {"pad": 0, "bos": 1, "eos": 2, "audio": 5, "image": 6, "video": 7}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def shrunk(
    config_class: type[PreTrainedConfig], changes: dict[str, Any] | None = None
) -> PreTrainedConfig:
    """Return a tiny configuration of the class.

    Args:
        config_class: Any configuration class of transformers.
        changes: What goes over the rules; ``{"text_config.head_dim": 4}`` reaches into a
            sub-configuration.
    """
    changes = SHAPES.get(config_class.model_type, {}) | (changes or {})
    own = {name: value for name, value in changes.items() if "." not in name}
    default = _default(config_class, own)
    declared = {field.name: field.default for field in dataclasses.fields(config_class)}
    arguments: dict[str, Any] = {}
    for name in declared:
        value = _read(default, declared, name)
        if isinstance(value, PreTrainedConfig):
            inner = {
                k.removeprefix(f"{name}."): v
                for k, v in changes.items()
                if k.startswith(f"{name}.")
            }
            arguments[name] = shrunk(type(value), inner)
        elif isinstance(value, int) and not isinstance(value, bool) and declared[name] is not None:
            if name in SIZES and value > 0:
                arguments[name] = min(SIZES[name], value)
            elif name.endswith(("_token_id", "_token_index")) and value >= VOCABULARY:
                arguments[name] = TOKENS.get(name.split("_token")[0], 3)
    if "pad_token_id" in declared and default.pad_token_id is None:
        arguments["pad_token_id"] = 0
    arguments |= {
        name: 0 for name in declared if name.startswith("mask_") and name.endswith("_prob")
    }
    _group_queries(default, declared, arguments)
    _keep_every_kind_of_layer(default, declared, arguments)
    return config_class(**(arguments | own))


def _default(config_class: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    try:
        return config_class()
    except Exception:  # a few defaults contradict themselves
        return config_class(**own)


def _read(default: PreTrainedConfig, declared: dict[str, Any], name: str) -> Any:
    try:
        return getattr(default, name, None)
    except Exception:  # a field that differs from layer to layer has no one value
        return declared[name]


def _group_queries(
    default: PreTrainedConfig, declared: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Give two key-value heads to four query heads, or four in latent attention (MLA)."""
    for name in KEY_VALUE_HEADS:
        if name in declared:
            single = _read(default, declared, name) == 1
            arguments[name] = 1 if single else 4 if "kv_lora_rank" in declared else 2


def _keep_every_kind_of_layer(
    default: PreTrainedConfig, declared: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Keep the fewest layers, at least two, with every kind of layer that the lists name."""
    count_name = next((name for name in LAYER_COUNTS if name in declared), "")
    count = getattr(default, count_name, 0) if count_name else 0
    lists = {
        name: value
        for name in declared
        if name not in NOT_BY_LAYER
        and isinstance(value := _read(default, declared, name), list | tuple)
        and len(value) == count > 2
    }
    if not lists:
        return
    kinds = list(zip(*lists.values(), strict=True))
    chosen = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:6]
    chosen += [i for i in range(count) if i not in chosen][: max(0, 2 - len(chosen))]
    arguments[count_name] = len(chosen)
    for name, value in lists.items():
        arguments[name] = [value[i] for i in sorted(chosen)]


def _layers(*kinds: str, **others: Any) -> dict[str, Any]:
    return {"num_hidden_layers": len(kinds), "layer_types": list(kinds), **others}


_FULL, _SLIDING, _LINEAR, _CONV = "full_attention", "sliding_attention", "linear_attention", "conv"
_SECTIONED_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_PYRAMID = _STAGES | {"num_attention_heads": [1, 2, 4, 4], "mlp_ratios": [2, 2, 2, 2]}
_SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
_SOUND_STAGES = {
    "num_filters": 4,
    "downsampling_ratios": [2, 2],
    "depths": [1, 1, 1],
    "hidden_size": 8,
}
_CONV_MOE = {
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}

# What the rules do not give, for each configuration's model_type; also where it is part of another.
SHAPES: dict[str, dict[str, Any]] = {
    "audioflamingo3_encoder": {"max_source_positions": 8},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "bit": {
        "embedding_size": 16,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 2, 1],
        "num_groups": 2,
    },
    "blt": {"use_cache": False},
    "bros": {"hidden_size": 64},
    "canary": {"decoder_start_token_id": 7},
    "cohere_compass_text": _layers(
        _SLIDING, _FULL, rope_parameters={_SLIDING: _SECTIONED_ROPE, _FULL: _SECTIONED_ROPE}
    ),
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "cvt": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 16,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": _CONV_MOE,
    "donut-swin": _SWIN,
    "dots1": _CONV_MOE | _layers(_SLIDING, _FULL),
    "dia": {"decoder_config.num_channels": 2, "delay_pattern": [0, 2]},
    "dots3_note": {
        "vision_config.adapter_in_dim": 32,
        "vision_config.adapter_out_dim": 32,
        "audio_config.adapter_input_size": 32,
        "audio_config.adapter_out_dim": 32,
        "audio_config.conv_output_size": 512,
    },
    "dots3_note_text": _layers(
        "indexed_attention",
        _SLIDING,
        "indexed_attention",
        mlp_layer_types=["dense", "sparse", "sparse"],
        head_dim=12,
        num_key_value_heads=4,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_q_lora_rank=16,
        swa_kv_lora_rank=8,
        swa_head_dim=12,
        swa_qk_nope_head_dim=8,
        swa_v_head_dim=8,
    ),
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "encoder-decoder": {"decoder.is_decoder": True, "decoder.add_cross_attention": True},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 3},
    "esmc": {"vocab_size": VOCABULARY, "num_key_value_heads": 4},
    "focalnet": {"embed_dim": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 8},
    "funnel": {"block_sizes": [2, 1, 1]},
    "gemma3n_text": _layers(
        _SLIDING,
        _FULL,
        _SLIDING,
        _FULL,
        num_kv_shared_layers=2,
        intermediate_size=[48] * 4,
        activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0],
    ),
    "gemma4_text": _layers(_SLIDING, _FULL, global_head_dim=16),
    "gemma4_unified_text": _layers(_SLIDING, _FULL, global_head_dim=16),
    "glmasr_encoder": {"max_position_embeddings": 16, "intermediate_size": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _layers(_LINEAR, _FULL, mamba_n_heads=8, num_local_experts=4),
    "granite_speech_encoder": {"input_dim": 16, "output_dim": 8, "context_size": 8},
    "granite_speech_plus_encoder": {"input_dim": 16, "output_dim": 8, "context_size": 8},
    "granite_speech": {"downsample_rate": 5, "window_size": 15},
    "granite_speech_plus": {"downsample_rate": 5, "window_size": 15},
    "hgnet_v2": {
        "embedding_size": 8,
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16, 16, 32],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 32, 32],
        "hidden_sizes": [16, 16, 32, 32],
        "stage_numb_of_layers": [2, 2, 2, 2],
        "stage_num_blocks": [1, 1, 2, 1],
    },
    "hiera": {
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "image_size": [32, 32],
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "levit": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "kyutai_speech_to_text": {
        "num_codebooks": 2,
        "codec_config.num_filters": 4,
        "codec_config.upsample_groups": 32,
        "codec_config.codebook_dim": 8,
        "codec_config.num_quantizers": 2,
        "codec_config.codebook_size": 16,
        "codec_config.vector_quantization_hidden_dimension": 8,
    },
    "lfm2": _layers(_CONV, _FULL),
    "lfm2_moe": _layers(_CONV, _FULL, _CONV),
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "ministral": {"head_dim": 8, **_layers(_SLIDING, _FULL)},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "mobilenet_v1": {"depth_multiplier": 0.1},
    "mobilenet_v2": {"depth_multiplier": 0.1},
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
        "image_size": 64,
        "patch_size": 2,
    },
    "mobilevitv2": {
        "base_attn_unit_dims": [16, 16, 16],
        "width_multiplier": 0.25,
        "n_attn_blocks": [1, 1, 1],
        "image_size": 64,
        "patch_size": 2,
    },
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "moonshine_streaming_encoder": {"sliding_windows": [[4, 2], [4, 0]]},
    "moss_transcribe_diarize_audio": {"max_source_positions": 16},
    "nemo_speechlm": {"audio_config.diarization_config.head_config.audio_hidden_size": 32},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "poolformer": _STAGES,
    "pvt": _PYRAMID,
    "pvt_v2": _PYRAMID | {"image_size": [32, 32]},
    "qwen2_audio_encoder": {"max_source_positions": 8},
    "qwen3_asr_encoder": {"output_dim": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "eos_token_id": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [2, 4],
        "axial_pos_embds_dim": [16, 16],
        "hash_seed": 0,
        "max_position_embeddings": 8,
    },
    "regnet": {
        "embedding_size": 8,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 2, 1, 1],
        "groups_width": 8,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [2, 1, 1, 1]},
    "segformer": _PYRAMID | {"decoder_hidden_size": 16},
    "siglip2_vision_model": {"num_patches": 16},
    "speecht5": {
        "conv_dim": [16, 16],
        "conv_stride": [5, 2],
        "conv_kernel": [10, 3],
        "num_conv_pos_embeddings": 8,
    },
    "speech-encoder-decoder": {"decoder.is_decoder": True, "decoder.add_cross_attention": True},
    "speech_to_text": {"max_source_positions": 64},
    "seamless_m4t": {"feature_projection_input_dim": 16, "num_conv_pos_embeddings": 8},
    "seamless_m4t_v2": {"feature_projection_input_dim": 16},
    "swiftformer": {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "swin": _SWIN,
    "swinv2": _SWIN | {"pretrained_window_sizes": [0, 0]},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "textnet": {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 32], "image_size": [32, 32]},
    "vibevoice_acoustic_tokenizer": _SOUND_STAGES,
    "vibevoice_acoustic_tokenizer_encoder": _SOUND_STAGES,
    "vibevoice_semantic_tokenizer_encoder": _SOUND_STAGES,
    "voxtral": {"audio_token_id": 5},
    "voxtral_encoder": {"max_source_positions": 16, "intermediate_size": 128},
    "wav2vec2": {
        "conv_dim": [16, 16],
        "conv_stride": [5, 2],
        "conv_kernel": [10, 3],
        "num_conv_pos_embeddings": 8,
        "num_feat_extract_layers": 2,
    },
    "whisper": {"max_source_positions": 16},
    "xlstm": {"mode": "train", "hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid"]},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid"],
        "num_mem_blocks": 2,
    },
}
_DRAFTER = "a drafter: needs another model's hidden states and key-values, and computes no loss"
UNBUILDABLE: dict[str, str] = {
    "dinat": "needs natten",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "gemma3n": "its vision tower is a timm model; timm is not installed",
    "layoutlmv2": "needs detectron2",
    "pp_lcnet": "its classifier takes labels but computes no loss",
    "shieldgemma2": "its classifier takes labels but computes no loss",
    "xlstm": "its PyTorch kernels write in place what the backward pass needs",
    "timm_wrapper": "needs timm",
}
