"""`peftkit merge`: fold an adapter into its backbone."""

import argparse
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    merge = commands.add_parser(
        "merge",
        help="fold an adapter into a 16- or 32-bit copy of its backbone",
        usage="peftkit merge RUN --output DIR [options]\n"
        "       peftkit merge BACKBONE ADAPTER --output DIR [options]",
    )
    merge.add_argument(
        "backbone",
        metavar="RUN or BACKBONE",
        help="a finished run; or a Hub id, a directory, a .gguf file, or package:NAME/FILE",
    )
    merge.add_argument(
        "adapter",
        nargs="?",
        metavar="ADAPTER",
        help="an adapter directory, for a causal language model; a run has its own",
    )
    merge.add_argument("--output", required=True, metavar="DIR", help="the directory to write")
    merge.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the merged model (default: that of the backbone's weights)",
    )
    merge.add_argument(
        "--quantization",
        choices=("nf4", "fp4", "int8"),
        help="quantise BACKBONE first, as in training: the merged model then computes what the "
        "adapter was trained on; a run's config says so itself",
    )
    merge.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    import torch

    import peftkit
    from peftkit.adapters.merging import save_merged
    from peftkit.backbones.loading import stored_dtype
    from peftkit.recording import summary
    from peftkit.runs.opening import open_run

    asked: torch.dtype | None = options.dtype and getattr(torch, options.dtype)
    if options.adapter is None:
        if options.quantization is not None:
            raise ConfigError("--quantization is for a backbone with an adapter: a run has its own")
        run = open_run(options.backbone)
        model, processor = run.model(), run.task.processor
    else:
        backbone = peftkit.load_backbone(
            options.backbone,
            quantization=options.quantization,
            dtype=asked or stored_dtype(options.backbone),
        )
        model = peftkit.load(backbone, options.adapter)
        processor = peftkit.load_tokenizer(options.backbone)
    merged = peftkit.merge(model, asked or model.get_base_model().dtype)
    save_merged(merged, processor, Path(options.output))
    print(f"{options.output}: {summary(merged)}")
    return 0
