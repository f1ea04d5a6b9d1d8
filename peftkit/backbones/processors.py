"""The processors of models of images and of speech, and the languages of translation models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, GenerationConfig

from peftkit.backbones.loading import load_tokenizer
from peftkit.backbones.sources import resolve_source
from peftkit.errors import BackboneError


def load_image_processor(source: str | Path) -> Any:
    """Load the image processor of the backbone at `source`: it scales, crops and normalises.

    Raises:
        BackboneError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(resolve_source(source))
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot load an image processor from {source}: {problem}") from problem


class SpeechProcessor:
    """The feature extractor and the tokenizer of a speech model of Whisper's kind.

    Args:
        source: The backbone's source.
        language: For multilingual models, the language that is spoken. Without it, a model would
            learn one beginning of a transcript and write after another.

    Raises:
        BackboneError: the extractor, the tokenizer or the language is missing, or the model does
            not know the language, or takes none.
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
        if self.tokenizer.eos_token_id is None:
            raise BackboneError(
                f"the tokenizer of {source} has no end-of-sequence token, which ends a transcript: "
                "name one as eos_token in its tokenizer_config.json"
            )
        self.options: dict[str, Any] = {}
        """Options of ``model.generate``."""
        is_multilingual = _is_multilingual(location)
        if is_multilingual and language is None:
            raise BackboneError(
                f"the model at {source} is multilingual: name the language in data.language"
            )
        if language is not None:
            takes_language = is_multilingual and hasattr(self.tokenizer, "set_prefix_tokens")
            if not takes_language:
                raise BackboneError(
                    f"the model at {source} takes no language: leave out data.language"
                )
            self._set_language(language)

    def _set_language(self, language: str) -> None:
        try:
            self.tokenizer.set_prefix_tokens(language=language, task="transcribe")
        except ValueError as problem:
            raise BackboneError(f"data.language: {problem}") from problem
        self.options = {"language": language, "task": "transcribe"}

    def label(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens to write for each text, with the end token, without the start token.

        Models put the start token there themselves.
        """
        end = self.tokenizer.eos_token_id
        found = []
        for ids in self.tokenizer(list(texts))["input_ids"]:
            if ids[:1] == [self._start]:
                ids = ids[1:]
            found.append(ids if ids[-1:] == [end] else [*ids, end])
        return found

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
    """Set the languages of a translation model's tokenizer.

    Args:
        tokenizer: That of a model such as NLLB, mBART-50 or M2M100.
        source: The language that is read, by the tokenizer's own name, such as eng_Latn; None
            leaves the tokenizer as it is.
        target: The language that is written.

    Returns:
        The options of ``model.generate`` for the target.

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
