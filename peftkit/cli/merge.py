"""`peftkit merge`: fold an adapter into its backbone."""

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
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
    merge.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
