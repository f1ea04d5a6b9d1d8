"""What stands before models of images and of speech, as a tokenizer stands before models of texts."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor

from peftkit.backbone import load_tokenizer, resolve_source
from peftkit.errors import BackboneError


def load_image_processor(source: str | Path) -> Any:
    """Load the image processor that belongs to the backbone at `source`: it scales, crops and normalises.

    Raises:
        BackboneError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(resolve_source(source))
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot load an image processor from {source}: {problem}") from problem


class SpeechProcessor:
    """The feature extractor and the tokenizer that belong to a speech model of Whisper's kind.

    Args:
        source: The backbone's source.
        language: For multilingual models, the language that is spoken; None lets the model tell.

    Raises:
        BackboneError: one of them is missing, or the model takes no language.
    """

    def __init__(self, source: str | Path, language: str | None = None) -> None:
        location = resolve_source(source)
        try:
            self.extractor: Any = AutoFeatureExtractor.from_pretrained(location)
            self._start = AutoConfig.from_pretrained(location).decoder_start_token_id
        except (OSError, ValueError, KeyError) as problem:
            raise BackboneError(f"cannot load a feature extractor from {source}: {problem}") from problem
        self.tokenizer: Any = load_tokenizer(source)
        self.options: dict[str, Any] = {}
        if language is not None:
            if not hasattr(self.tokenizer, "set_prefix_tokens"):
                raise BackboneError(f"the model at {source} takes no language: leave out data.language")
            self.tokenizer.set_prefix_tokens(language=language, task="transcribe")
            self.options = {"language": language, "task": "transcribe"}

    def label(self, text: str, max_length: int) -> list[int]:
        """Return the tokens to write for a text, with the end, without the start token that models put before themselves."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        ids = ids[1:] if ids[:1] == [self._start] else ids
        end = self.tokenizer.eos_token_id
        return (ids if ids[-1:] == [end] else [*ids, end])[:max_length]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write both into a directory."""
        self.extractor.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
