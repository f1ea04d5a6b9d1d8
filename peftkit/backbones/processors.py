"""What stands before models of images and of speech, as a tokenizer stands before models of texts."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, GenerationConfig

from peftkit.backbones.loading import load_tokenizer, resolve_source
from peftkit.errors import BackboneError


def load_image_processor(source: str | Path) -> Any:
    """Load the image processor that belongs to the backbone at `source`: it scales, crops and
    normalises.

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
        language: For multilingual models, the language that is spoken.

    Raises:
        BackboneError: one of them is missing, or the language is: a model would learn another
            beginning than it writes after. Or the model does not know the language, or takes none.
    """

    def __init__(self, source: str | Path, language: str | None = None) -> None:
        location = resolve_source(source)
        try:
            self.extractor: Any = AutoFeatureExtractor.from_pretrained(location)
            self._start = AutoConfig.from_pretrained(location).decoder_start_token_id
        except (OSError, ValueError, KeyError) as problem:
            raise BackboneError(
                f"cannot load a feature extractor from {source}: {problem}"
            ) from problem
        self.tokenizer: Any = load_tokenizer(source)
        self.options: dict[str, Any] = {}
        is_multilingual = _is_multilingual(location)
        if language is None and is_multilingual:
            raise BackboneError(
                f"the model at {source} is multilingual: name the language in data.language"
            )
        if language is not None:
            if not is_multilingual or not hasattr(self.tokenizer, "set_prefix_tokens"):
                raise BackboneError(
                    f"the model at {source} takes no language: leave out data.language"
                )
            try:
                self.tokenizer.set_prefix_tokens(language=language, task="transcribe")
            except ValueError as problem:
                raise BackboneError(f"data.language: {problem}") from problem
            self.options = {"language": language, "task": "transcribe"}

    def label(self, text: str, max_length: int) -> list[int]:
        """Return the tokens to write for a text, with the end, without the start token that models
        put before themselves.
        """
        ids: list[int] = self.tokenizer(text)["input_ids"]
        ids = ids[1:] if ids[:1] == [self._start] else ids
        end = self.tokenizer.eos_token_id
        return (ids if ids[-1:] == [end] else [*ids, end])[:max_length]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write both into a directory."""
        self.extractor.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def _is_multilingual(location: str) -> bool:
    try:
        return bool(getattr(GenerationConfig.from_pretrained(location), "lang_to_id", None))
    except OSError:  # there is no such file
        return False


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> dict[str, Any]:
    """Set the languages of a translation model's tokenizer, and return the options of
    ``model.generate`` for the target.

    Args:
        tokenizer: Of a model of the kind of NLLB, mBART-50 or M2M100.
        source: The language that is read, by the tokenizer's own name, such as eng_Latn; None
            leaves the tokenizer as it is.
        target: The language that is written.

    Raises:
        BackboneError: the tokenizer takes no languages, or does not know one.
    """
    given = {"source_language": ("src_lang", source), "target_language": ("tgt_lang", target)}
    ids = {}
    for key, (attribute, language) in given.items():
        if language is None:
            continue
        if not hasattr(tokenizer, attribute):
            raise BackboneError(f"the model's tokenizer takes no languages: leave out data.{key}")
        ids[key] = _language_id(tokenizer, language)
        if ids[key] in (None, tokenizer.unk_token_id):
            raise BackboneError(f"data.{key}: the model's tokenizer knows no language {language!r}")
        setattr(tokenizer, attribute, language)
    return {"forced_bos_token_id": ids["target_language"]} if target is not None else {}


def _language_id(tokenizer: Any, language: str) -> int | None:
    """Return the token for a language; M2M100's tokenizer puts it in underscores."""
    token = getattr(tokenizer, "lang_code_to_token", {}).get(language, language)
    found: int | None = tokenizer.convert_tokens_to_ids(token)
    return found
