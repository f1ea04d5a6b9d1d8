"""Where a backbone comes from: a directory, the Hub, a GGUF file, a package, or a config alone."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedModel

from peftkit.config.shipped import PACKAGE_PREFIX, package_file
from peftkit.errors import BackboneError
from peftkit.files import cache_directory, recover, staged_directory

logger = logging.getLogger(__name__)


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
        return str(_dequantize_gguf_once(path, cache))
    if path.suffix == ".json":
        if not path.is_file():
            raise BackboneError(f"there is no config at {path}")
        return str(_draw_weights_once(path, cache))
    if path.is_dir():
        return str(path)
    looks_like_path = text.startswith((".", "/", "~", PACKAGE_PREFIX)) or text.count("/") > 1
    if isinstance(source, Path) or looks_like_path:
        raise BackboneError(
            f"there is no directory {path}; a backbone is a directory with config.json, or a "
            ".gguf file"
        )
    return text


def _place_in(cache: Path, kind: str) -> Path:
    """Return the directory of the cache for backbones of one kind.

    Raises:
        BackboneError: it cannot be made.
    """
    directory = cache / kind
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BackboneError(
            f"cannot write to peftkit's cache, {directory}: {problem.strerror or problem}; set the "
            "environment variable PEFTKIT_CACHE to a directory with room"
        ) from problem
    return directory


def _dequantize_gguf_once(path: Path, cache: Path) -> Path:
    """Return the cached directory of bfloat16 safetensors for a GGUF file; write it if needed."""
    target = _place_in(cache, "gguf") / f"{path.stem}-{_quick_digest(path)}"
    with FileLock(f"{target}.lock"):  # several processes of one run ask at the same time
        recover(target)
        if not (target / "config.json").exists():
            _dequantize_gguf(path, target)
    return target


def _dequantize_gguf(path: Path, target: Path) -> None:
    logger.info("reading %s once, into %s", path.name, target)
    file = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **file, **_dequantizing(), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**file)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise BackboneError(f"cannot read the GGUF file {path}: {problem}") from problem
    with staged_directory(target) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


def _dequantizing() -> dict[str, Any]:
    """Return the argument that makes transformers unpack GGUF weights.

    Before 5.17, transformers had no such argument and always did so.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _quick_digest(path: Path, sample_bytes: int = 2**20) -> str:
    """Return a digest of a file's size and of its first and last mebibyte.

    It tells files of many gigabytes apart without reading them whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(sample_bytes)
        file.seek(max(0, size - sample_bytes))
        last = file.read()
    return hashlib.sha256(size.to_bytes(8, "little") + first + last).hexdigest()[:16]


def _draw_weights_once(path: Path, cache: Path) -> Path:
    """Return the cached directory of a config's model with random weights; write it if needed.

    The weights are the same each time.
    """
    files = [file for file in sorted(path.parent.iterdir()) if file.is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    target = _place_in(cache, "random") / f"{path.parent.name}-{digest.hexdigest()[:16]}"
    with FileLock(f"{target}.lock"):
        recover(target)
        if not (target / "config.json").exists():
            with staged_directory(target) as stage:
                for file in files:
                    shutil.copy(file, stage)
                _draw_weights(path).save_pretrained(stage)
    return target


def _draw_weights(path: Path) -> PreTrainedModel:
    """Return the model of a config with fresh weights, in float32.

    The state of the random generator is left as it was.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        names = config.architectures or ["AutoModel"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: PreTrainedModel
            if names == ["AutoModel"]:
                model = transformers.AutoModel.from_config(config)
            else:
                model = getattr(transformers, names[0])(config)
    except (OSError, ValueError, KeyError, AttributeError) as problem:
        raise BackboneError(f"cannot build a model from the config {path}: {problem}") from problem
    return model
