"""`peftkit generate`: let a finished run's language model write, token by token."""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

_SETTINGS = ("max_new_tokens", "temperature", "top_p")


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    verb = commands.add_parser(
        "generate", help="let a finished run's language model write; without a prompt, talk to it"
    )
    verb.add_argument("run_directory", metavar="RUN", help="a run of the recipe chat or causal_lm")
    verb.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a question, or the beginning of a text (default: read lines and answer each)",
    )
    verb.add_argument(
        "--max_new_tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest answer, in tokens (default: 256)",
    )
    verb.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="NUMBER",
        help="above 0, draw tokens at random; 0 takes the likeliest (default: 0)",
    )
    verb.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="with a temperature, draw among the likeliest tokens that make up this probability "
        "(default: 1)",
    )
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.config.reading import build
    from peftkit.config.sections import GenerationSettings
    from peftkit.errors import ConfigError
    from peftkit.runs.opening import open_run
    from peftkit.tasks.causal_lm import CausalLMTask
    from peftkit.tasks.generation import stream

    values = {name: getattr(options, name) for name in _SETTINGS}
    settings = build(GenerationSettings, values, "the command line").options()
    run = open_run(options.run_directory)
    task = run.task
    if not isinstance(task, CausalLMTask):
        raise ConfigError(
            f"{run.directory} holds no language model; use `peftkit predict` for its task"
        )
    model = run.model()

    def write(turns: list[dict[str, str]], text: str) -> str:
        prompt = task.prompt(turns, text)
        return _print_text(stream(model, task.processor, prompt, **settings))

    try:
        if options.prompt is not None:
            write([], options.prompt)
        else:
            _talk(write)
    except KeyboardInterrupt:
        print()
        return 130  # 128 plus the number of SIGINT
    return 0


def _talk(write: Callable[[list[dict[str, str]], str], str]) -> None:
    """Answer lines until there are no more."""
    print("an empty line starts a new conversation, Ctrl-D ends", file=sys.stderr)
    turns: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text.strip():
            turns = []
            continue
        answer = write(turns, text)
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def _print_text(pieces: Iterator[str]) -> str:
    """Print the pieces of a text as they come, and return the whole text."""
    written = []
    for piece in pieces:
        written.append(piece)
        print(piece, end="", flush=True)
    print()
    return "".join(written).strip()
