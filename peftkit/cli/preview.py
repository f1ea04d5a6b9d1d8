"""`peftkit preview`: show what a model will learn from."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    preview = commands.add_parser("preview", help="show what a model will learn from, supervised tokens marked")
    preview.add_argument("--config", required=True, help="a recipe's config; its model and data sections are read")
    preview.add_argument("--count", type=int, default=3, help="examples to show (default: 3)")
    preview.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
