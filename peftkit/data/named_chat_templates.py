"""Chat templates for models that have none: `data.chat_template` names one, or a file."""

from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peftkit.data.questions import beginning_of_text
from peftkit.errors import ConfigError, nearest

_DIRECTORY = Path(__file__).parent / "templates"
_LARGEST = 256 * 1024  # bytes of a file; the longest public ones have about 30,000


def template_names() -> list[str]:
    """Return the names of the templates that peftkit has."""
    return sorted(file.stem for file in _DIRECTORY.glob("*.jinja"))


def set_chat_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> None:
    """Give a tokenizer a chat template, in place of its own; it is saved with the tokenizer.

    The templates that peftkit has end an answer with the tokenizer's end-of-sequence token, on
    which every server stops, and begin as the tokenizer begins every text. So they need no new
    tokens. What marks a turn is one token where the tokenizer knows it, and text where it does not.

    Args:
        tokenizer: The tokenizer.
        given: A name of `template_names`, or a Jinja file; None leaves the tokenizer as it is.

    Raises:
        ConfigError: there is no such template, it is no template, or the tokenizer has no token to
            end an answer with.
    """
    if given is None:
        return
    if given in template_names():
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"data.chat_template: {given} ends answers with the end-of-sequence token, and the "
                f"tokenizer of {tokenizer.name_or_path} has none: name one as eos_token in its "
                "tokenizer_config.json"
            )
        text = (_DIRECTORY / f"{given}.jinja").read_text(encoding="utf-8")
        beginning = "{{- bos_token }}" if beginning_of_text(tokenizer) else ""
        tokenizer.chat_template = beginning + text
    else:
        tokenizer.chat_template = _read_template(given)


def _read_template(given: str) -> str:
    file = Path(given)
    if not file.is_file():
        names = template_names()
        raise ConfigError(
            f"data.chat_template: {given} is neither a file nor one of the chat templates that "
            f"peftkit has ({', '.join(names)}){nearest(given, names)}"
        )
    size = file.stat().st_size
    if size > _LARGEST:
        raise ConfigError(
            f"data.chat_template: {given} has {size:,} bytes, and a chat template has at most "
            f"{_LARGEST:,}: name a Jinja file"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"data.chat_template: {given} is not in UTF-8: name a Jinja file"
        ) from problem
    _check_syntax(text, given)
    return text


def _check_syntax(text: str, given: str) -> None:
    try:
        render_jinja_template([[{"role": "user", "content": ""}]], chat_template=text)
    except TemplateSyntaxError as problem:
        raise ConfigError(
            f"data.chat_template: {given}, line {problem.lineno}, is no Jinja: {problem.message}"
        ) from problem
    except Exception:
        pass  # a good template may refuse this dialogue
    if not text.strip():
        raise ConfigError(f"data.chat_template: {given} is empty: name a Jinja file")
