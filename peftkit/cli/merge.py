"""`peftkit merge`: fold an adapter into its backbone."""

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    merge = commands.add_parser(
        "merge", help="fold an adapter into a 16- or 32-bit copy of its backbone"
    )
    merge.add_argument(
        "backbone",
        metavar="RUN or BACKBONE",
        help="a finished run; or a Hub id, directory, .gguf file, or package:NAME/FILE",
    )
    merge.add_argument(
        "adapter",
        nargs="?",
        help="an adapter directory, for a causal language model; a run has its own",
    )
    merge.add_argument("output", help="the directory to write")
    merge.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    merge.add_argument(
        "--quantization",
        choices=("nf4", "fp4", "int8"),
        help="quantise the backbone as in training first: the merged model then computes what the adapter was trained on; "
        "a run says so itself",
    )
    merge.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import torch

    import peftkit
    from peftkit.adapters.merging import save_merged
    from peftkit.errors import ConfigError
    from peftkit.recording import summary
    from peftkit.runs.opening import open_run

    dtype = getattr(torch, options.dtype)
    if options.adapter is None:
        if options.quantization is not None:
            raise ConfigError("--quantization is for a backbone with an adapter: a run has its own")
        run = open_run(options.backbone)
        model, processor = run.model(), run.task.processor
    else:
        backbone = peftkit.load_backbone(
            options.backbone, quantization=options.quantization, dtype=dtype
        )
        model = peftkit.load(backbone, options.adapter)
        processor = peftkit.load_tokenizer(options.backbone)
    merged = peftkit.merge(model, dtype)
    save_merged(merged, processor, Path(options.output))
    print(f"{options.output}: {summary(merged)}")
    return 0
