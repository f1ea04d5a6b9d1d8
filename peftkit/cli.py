"""The `peftkit` command. Its imports are lazy, so that `--help` answers at once."""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from peftkit.errors import ConfigError, PeftkitError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 where the user has to change something.

    `train` returns what `accelerate launch` returns, which is 1 for every failure of the recipe; run by itself, a recipe
    ends with 2 after a mistake in its config and with 128 plus the signal's number after an interruption.
    """
    parser = argparse.ArgumentParser(
        prog="peftkit", description="Parameter-efficient tuning for people with one small GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train with a recipe",
        usage="peftkit train [ACCELERATE OPTIONS] RECIPE --config FILE [--section.key VALUE ...]",
        description=f"Print and run `accelerate launch` for a recipe. Recipes: {', '.join(sorted(recipes()))}.",
    )
    train.set_defaults(run=_train)

    preview = commands.add_parser("preview", help="show what a model will learn from, supervised tokens marked")
    preview.add_argument("--config", required=True, help="a recipe's config; its model and data sections are read")
    preview.add_argument("--count", type=int, default=3, help="examples to show (default: 3)")
    preview.set_defaults(run=_preview)

    look = commands.add_parser(
        "inspect", help="show a model's anatomy and what each method would touch; needs no weights"
    )
    look.add_argument("model", help="Hub id, directory, .gguf file, package:NAME/FILE, or a config.json")
    look.add_argument("--task", help="the head to build, e.g. sequence-classification (default: what the config names)")
    look.set_defaults(run=_inspect)

    merge = commands.add_parser("merge", help="fold an adapter into a 16- or 32-bit copy of its backbone")
    merge.add_argument("backbone", help="Hub id, directory, .gguf file, or package:NAME/FILE")
    merge.add_argument("adapter", help="an adapter directory")
    merge.add_argument("output", help="the directory to write")
    merge.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    merge.add_argument(
        "--quantization",
        choices=("nf4", "fp4", "int8"),
        help="quantise the backbone as in training first: the merged model then computes what the adapter was trained on",
    )
    merge.set_defaults(run=_merge)

    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"] and words[1:2] not in (["-h"], ["--help"]):
        options = parser.parse_args(words[:1])
        options.words = words[1:]  # for Accelerate and for the recipe, as they are
    else:
        options = parser.parse_args(words)
    try:
        code: int = options.run(options)
    except PeftkitError as problem:
        print(f"peftkit {options.command}: {problem}", file=sys.stderr)
        return 2
    return code


def recipes() -> dict[str, Path]:
    """Return the recipes by name: those of the installed package, or of the source tree that it is imported from."""
    here = Path(__file__).parent
    directory = here / "_recipes" if (here / "_recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in directory.glob("*.py")}


def _train(options: argparse.Namespace) -> int:
    known = recipes()
    place = next((i for i, word in enumerate(options.words) if word in known), None)
    if place is None:
        given = next((word for word in options.words if not word.startswith("-")), "")
        raise ConfigError(f"no recipe is named; recipes are {', '.join(sorted(known))}{nearest(given, known)}")
    script = known[options.words[place]]
    shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    words = ["--quiet", *options.words[:place], str(shown), *options.words[place + 1 :]]
    print("accelerate launch", shlex.join(words), file=sys.stderr, flush=True)
    # A Ctrl-C is for the recipe alone, which saves and says how to go on: this process and Accelerate's wait for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.call([sys.executable, "-m", "accelerate.commands.launch", *words])


def _preview(options: argparse.Namespace) -> int:
    from peftkit.backbone import load_tokenizer
    from peftkit.config import build, load_yaml
    from peftkit.data.loading import load_examples
    from peftkit.data.preview import preview
    from peftkit.sections import DataSettings, ModelSettings

    values = load_yaml(Path(options.config))
    model = build(ModelSettings, values.get("model", {}), f"{options.config}, model")
    data = build(DataSettings, values.get("data", {}), f"{options.config}, data")
    tokenizer = load_tokenizer(model.source)
    rendered, _, kind = load_examples(data, data.train, tokenizer)
    print(f"{data.train}: {kind}")
    print(preview(rendered, tokenizer, count=options.count, color=sys.stdout.isatty()))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from peftkit.inspection import describe, empty_model

    print(describe(empty_model(options.model, options.task)))
    return 0


def _merge(options: argparse.Namespace) -> int:
    import torch

    import peftkit
    from peftkit.merging import save_merged
    from peftkit.recording import summary

    dtype = getattr(torch, options.dtype)
    backbone = peftkit.load_backbone(options.backbone, quantization=options.quantization, dtype=dtype)
    merged = peftkit.merge(peftkit.load(backbone, options.adapter), dtype)
    save_merged(merged, peftkit.load_tokenizer(options.backbone), Path(options.output))
    print(f"{options.output}: {summary(merged)}")
    return 0
