"""The README of an adapter directory: how to load what is in it."""

from peft import PeftConfig
from torch import nn

from peftkit.methods.method import method_of
from peftkit.recording import record

README_NAME = "README.md"

_TEXT = """# Adapter: {title}

peftkit saved it for {model}. To load it:

```python
import peft
import peftkit

backbone = peftkit.load_backbone({arguments})
model = peftkit.load(backbone, "path/of/this/directory")
```

{with_peft}
"""
_KNOWN_TO_PEFT = "`peft.PeftModel.from_pretrained` loads it, too."
_NEW_TO_PEFT = """PEFT does not have this method. `peft.PeftModel.from_pretrained` loads it once
`peft` and then `peftkit` have been imported; without peftkit it raises a `KeyError`."""


def readme_of(backbone: nn.Module, config: PeftConfig) -> str:
    """Return the text for an adapter of `backbone`."""
    method = method_of(config)
    source = record(backbone).get("load_backbone", {})
    arguments = [repr(source.get("source", "the backbone's Hub id or directory"))]
    for key in ("task", "quantization"):
        if source.get(key):
            arguments.append(f"{key}={source[key]!r}")
    is_known = method.config_class.__module__.startswith("peft.")
    return _TEXT.format(
        title=method.title,
        model=type(backbone).__name__,
        arguments=", ".join(arguments),
        with_peft=_KNOWN_TO_PEFT if is_known else _NEW_TO_PEFT,
    )
