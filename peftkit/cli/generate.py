"""`peftkit generate`: let a finished run's language model write, token by token."""

import argparse
import sys
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    verb = commands.add_parser(
        "generate", help="let a finished run's language model write; without a prompt, talk to it"
    )
    verb.add_argument("run_directory", metavar="RUN", help="a run of the recipe chat or causal_lm")
    verb.add_argument(
        "--prompt", help="one question, or the beginning of a text; without it, lines are read and answered"
    )
    verb.add_argument("--max_new_tokens", type=int, default=256, help="longest answer in tokens (default: 256)")
    verb.add_argument("--temperature", type=float, default=0.0, help="0 (the default) always takes the likeliest token")
    verb.add_argument(
        "--top_p", type=float, default=1.0, help="with a temperature: share of the probability to draw from"
    )
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.errors import ConfigError
    from peftkit.generation import stream
    from peftkit.sections import GenerationSettings
    from peftkit.training.language_model import LanguageModel
    from peftkit.training.opening import open_run

    run = open_run(options.run_directory)
    task = run.task
    if not isinstance(task, LanguageModel):
        raise ConfigError(f"{run.directory} holds no language model; `peftkit predict` answers for its task")
    names = ("max_new_tokens", "temperature", "top_p")
    settings = GenerationSettings(**{name: getattr(options, name) for name in names}).options()
    model = run.model()
    if options.prompt is not None:
        for piece in stream(model, task.processor, task.prompt([], options.prompt), **settings):
            print(piece, end="", flush=True)
        print()
        return 0
    print("an empty line starts a new conversation, Ctrl-D ends", file=sys.stderr)
    turns: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            return 0
        if not text.strip():
            turns = []
            continue
        pieces = []
        for piece in stream(model, task.processor, task.prompt(turns, text), **settings):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print()
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(pieces).strip()}]
