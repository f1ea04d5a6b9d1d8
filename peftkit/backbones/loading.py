"""Load a frozen 16-, 8- or 4-bit backbone and make it trainable without up-casting anything."""

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from filelock import FileLock
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.anatomy import task_head
from peftkit.backbones.cpu_weight_repacking import prevent_cpu_repacking
from peftkit.backbones.quantization import (
    Quantization,
    bitsandbytes_config,
    make_new_layers_plain,
    quantization_of,
)
from peftkit.backbones.quantized_forwards import quiet_int8_layers
from peftkit.config.shipped import PACKAGE_PREFIX, package_file
from peftkit.errors import BackboneError, nearest
from peftkit.files import cache_directory, recover, staged_directory
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes
from peftkit.recording import note

logger = logging.getLogger(__name__)

Head = Literal[
    "causal-lm",
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
    "image-classification",
    "speech-seq2seq",
]
AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
}


def load_backbone(
    source: str | Path,
    *,
    task: Head = "causal-lm",
    quantization: Quantization | None = None,
    dtype: torch.dtype | Literal["auto"] = "auto",
    double_quantization: bool = True,
    device: str | torch.device | None = None,
    attention: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> PreTrainedModel:
    """Load a pretrained model, frozen, in evaluation mode, ready for `attach`.

    Linear layers are stored as `quantization` says (NF4 and double quantisation: arXiv:2305.14314,
    section 3; int8: arXiv:2208.07339); everything else stays in `dtype`. Nothing is cast to
    float32. What was decided, and which modules stay 16-bit, stands in
    ``peftkit.record(model)["load_backbone"]``.

    Args:
        source: A Hub id, a local directory, a ``.gguf`` file, or ``package:NAME/FILE`` for a file
            that an installed Python package carries. GGUF weights are dequantised once, into a
            cache of bfloat16 safetensors. The path of a ``config.json`` asks for the architecture
            alone, with random weights (seed 0), to be learned from nothing.
        task: The head to load: which of transformers' auto classes.
        quantization: "nf4", "fp4", "int8", or None for 16-bit weights.
        dtype: Dtype of activations and of all that is not quantised; "auto" is bfloat16 where the
            device computes in it, float16 on older GPUs.
        double_quantization: Quantise the 4-bit block scales too, which saves about 0.4 bit a
            parameter.
        device: Where the model goes; None is this process's GPU if there is one, else the CPU.
        attention: transformers' attention implementation, e.g. "sdpa" or "eager"; None lets
            transformers choose.
        overrides: Attributes to set on the model's config, e.g. ``{"num_labels": 3}``.
        cache_dir: Where dequantised GGUF files go; None is ``$PEFTKIT_CACHE`` or
            ``~/.cache/peftkit``.

    Raises:
        BackboneError: the source cannot be found or read, or an argument is none of those above.
    """
    if task not in AUTO_CLASSES:
        raise BackboneError(
            f"task {task!r} is none of {', '.join(AUTO_CLASSES)}{nearest(task, AUTO_CLASSES)}"
        )
    if quantization is not None and quantization not in get_args(Quantization):
        raise BackboneError(f"quantization {quantization!r} is none of None, 'int8', 'nf4', 'fp4'")
    place = torch.device(device) if device is not None else default_device()
    resolved_dtype = default_dtype(place) if dtype == "auto" else dtype
    arguments: dict[str, Any] = {
        "dtype": resolved_dtype,
        "device_map": {"": place},
        **(overrides or {}),
    }
    if quantization is not None:
        arguments["quantization_config"] = bitsandbytes_config(
            quantization, resolved_dtype, double_quantization
        )
    if attention is not None:
        arguments["attn_implementation"] = attention
    auto_class = getattr(transformers, AUTO_CLASSES[task])
    location = resolve_source(source, cache_dir)
    if "num_labels" in (overrides or {}):
        arguments["ignore_mismatched_sizes"] = (
            True  # a head for other labels gives way to a new one
        )
    try:
        model: PreTrainedModel
        with quiet_bitsandbytes():
            model, found = auto_class.from_pretrained(
                location, output_loading_info=True, **arguments
            )
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot load {source} as {task}: {problem}") from problem
    new = _new_weights(model, found, str(source))
    make_new_layers_plain(model)
    prevent_cpu_repacking(model)
    quiet_int8_layers(model)
    model.requires_grad_(False)
    model.eval()
    settings: dict[str, Any] = {
        "source": str(source),
        "task": task,
        "quantization": quantization,
        "device": str(place),
    }
    settings["new"] = new
    settings["weights"] = "random" if str(source).endswith(".json") else "pretrained"
    note(model, "load_backbone", settings | describe_storage(model))
    return model


def _new_weights(model: PreTrainedModel, found: Mapping[str, Any], source: str) -> list[str]:
    """Return the names of the weights that the checkpoint does not have, or has for other labels:
    they start random.

    Raises:
        BackboneError: the checkpoint has weights of other shapes outside of the head.
    """
    other = [str(entry[0]) for entry in found["mismatched_keys"]]
    heads = tuple(f"{name}." for name in task_head(model))
    wrong = [name for name in other if not name.startswith(heads)]
    if wrong:
        raise BackboneError(
            f"{source} does not fit its config: the weight {wrong[0]} has another shape"
        )
    return sorted({*found["missing_keys"], *other})


def load_tokenizer(
    source: str | Path, cache_dir: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the backbone at `source`; the same kinds of source as
    `load_backbone`.

    A tokenizer without a padding token pads with its end-of-sequence token. Labels never depend on
    the padding token: what is padding is told by the attention mask.

    Raises:
        BackboneError: there is no tokenizer at `source`.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve_source(source, cache_dir)
        )
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot load a tokenizer from {source}: {problem}") from problem
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def default_device() -> torch.device:
    """Return this process's GPU, or the CPU where there is none or Accelerate was told to use the
    CPU.
    """
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in (
        "1",
        "true",
        "yes",
    ):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float16 on a GPU that can only emulate bfloat16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def stored_dtype(source: str | Path) -> torch.dtype:
    """Return the dtype of the weights at `source`: float32 where its config names none.

    Raises:
        BackboneError: there is no config at `source`.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(resolve_source(source))
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot read the config of {source}: {problem}") from problem
    dtype = config.get_text_config().dtype or config.dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def describe_storage(model: nn.Module) -> dict[str, Any]:
    """Return how the model is stored: dtypes by size, and the modules with weight matrices that are
    not quantised.
    """
    size_bytes: Counter[str] = Counter()
    unquantized: dict[str, str] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        kind = quantization_of(module)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            dtype = (
                kind
                if kind and parameter_name == "weight"
                else str(parameter.dtype).removeprefix("torch.")
            )
            size_bytes[dtype] += parameter.numel() * parameter.element_size()
            if kind is None and parameter.ndim >= 2:
                unquantized[f"{name}.{parameter_name}"] = f"{tuple(parameter.shape)} {dtype}"
    return {
        "class": type(model).__name__,
        "size_bytes": dict(size_bytes),
        "not_quantized": unquantized,
    }


def resolve_source(source: str | Path, cache_dir: str | Path | None = None) -> str:
    """Return what transformers loads for `source`: a directory, or a Hub id as it is.

    Raises:
        BackboneError: a package, or a file or directory that `source` names, does not exist.
    """
    text = str(source)
    is_in_package = text.startswith(PACKAGE_PREFIX)
    path = package_file(text, BackboneError) if is_in_package else Path(text).expanduser()
    cache = Path(cache_dir).expanduser() if cache_dir else cache_directory()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneError(f"there is no GGUF file at {path}")
        return str(_dequantized_gguf(path, cache))
    if path.suffix == ".json":
        if not path.is_file():
            raise BackboneError(f"there is no config at {path}")
        return str(_random_weights(path, cache))
    if path.is_dir():
        return str(path)
    is_path = (
        isinstance(source, Path)
        or text.startswith((".", "/", "~", PACKAGE_PREFIX))
        or text.count("/") > 1
    )
    if is_path:
        raise BackboneError(
            f"there is no directory {path}; a backbone is a directory with config.json, or a .gguf file"
        )
    return text


def _dequantized_gguf(path: Path, cache: Path) -> Path:
    """Return the cached bfloat16 safetensors directory for a GGUF file, writing it first where
    there is none.
    """
    target = cache / "gguf" / f"{path.stem}-{_quick_digest(path)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # several processes of one run ask at the same time
        recover(target)
        if not (target / "config.json").exists():
            _dequantize_gguf(path, target)
    return target


def _random_weights(path: Path, cache: Path) -> Path:
    """Return the cached directory of the model that a config describes, with random weights, the
    same each time.
    """
    files = [file for file in sorted(path.parent.iterdir()) if file.is_file()]
    digest = hashlib.sha256(
        b"".join(file.name.encode() + file.read_bytes() for file in files)
    ).hexdigest()[:16]
    target = cache / "random" / f"{path.parent.name}-{digest}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        recover(target)
        if not (target / "config.json").exists():
            with staged_directory(target) as stage:
                for file in files:
                    shutil.copy(file, stage)
                _build(path).save_pretrained(stage)
    return target


def _build(path: Path) -> PreTrainedModel:
    """Return the model of a config with freshly drawn weights, in float32; the generator is left as
    it was.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        names = config.architectures or ["AutoModel"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            architecture = getattr(transformers, names[0])
            model: PreTrainedModel = (
                architecture.from_config if names == ["AutoModel"] else architecture
            )(config)
    except (OSError, ValueError, KeyError, AttributeError) as problem:
        raise BackboneError(f"cannot build a model from the config {path}: {problem}") from problem
    return model


def _dequantize_gguf(path: Path, target: Path) -> None:
    logger.info("reading %s once, into %s", path.name, target)
    try:
        loaded = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **loaded, **_dequantize(), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**loaded)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise BackboneError(f"cannot read the GGUF file {path}: {problem}") from problem
    with staged_directory(target) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


def _dequantize() -> dict[str, Any]:
    """Return the argument that makes transformers unpack GGUF weights; before 5.17 it did so
    unasked.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _quick_digest(path: Path, sample_bytes: int = 2**20) -> str:
    """Return a digest of a file's size and of its first and last mebibyte, which tells apart files
    of many gigabytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(sample_bytes)
        file.seek(max(0, size - sample_bytes))
        return hashlib.sha256(size.to_bytes(8, "little") + head + file.read()).hexdigest()[:16]
