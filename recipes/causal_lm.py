"""Teach a language model a domain: its texts, its stories, its code.

    accelerate launch recipes/causal_lm.py --config recipes/configs/causal_lm/quick.yaml

Rows are {"text": ...}. Texts longer than `data.max_length` are cut into blocks, so that every token
but a text's first is predicted once, and the perplexity is that of all tokens alike. With
`data.packing`, short texts share an example without seeing each other; whether the model can do
that is tried on it first. The report shows how held-out texts go on.
"""

from dataclasses import field

from peftkit.config.keys import section
from peftkit.config.sections import DataSettings, GenerationSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Config(RecipeSettings):
    """Teach a language model a domain."""

    data: DataSettings
    generation: GenerationSettings = field(default_factory=GenerationSettings)


def task(config: Config):
    """Return how texts become blocks and packs, and how they go on."""
    import peftkit
    from peftkit.tasks.causal_lm import CausalLMTask

    return CausalLMTask(config, peftkit.load_tokenizer(config.model.source))


if __name__ == "__main__":
    run_recipe(task, Config)
