"""Teach a language model a domain: its texts, its stories, its code.

    accelerate launch recipes/causal_lm.py --config causal_lm/quick

Rows are {"text": ...}. Texts longer than `data.max_length` are cut into blocks in which every token
but the text's first is predicted once, so the perplexity is that of all tokens. With
`data.packing`, short texts share an example without seeing each other; a test on the model decides
first whether it can do that. The report shows how the model continues held-out texts.
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


def make_task(config: Config):
    """Return the task: texts are cut and packed, and the model continues held-out ones."""
    import peftkit
    from peftkit.tasks.causal_lm import CausalLMTask

    return CausalLMTask(config, peftkit.load_tokenizer(config.model.source))


if __name__ == "__main__":
    run_recipe(make_task, Config)
