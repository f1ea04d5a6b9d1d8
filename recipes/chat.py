"""Fine-tune a chat model on dialogues. The loss is on the assistant's answers.

    accelerate launch recipes/chat.py --config chat/quickstart

Rows are {"messages": [{"role": ..., "content": ...}, ...]}, perhaps with "tools"; {"prompt": ...,
"completion": ...}, texts or lists of messages as in TRL; or rows of Alpaca (instruction, output),
ShareGPT or LLaMA-Factory (conversations). docs/data-formats.md shows them all. A held-out row may
have "expect", a list of strings that the answer to its last question must contain. The report has
the share of answers that do, the exact-fact accuracy.
"""

from dataclasses import field

from peftkit.config.keys import section
from peftkit.config.sections import DataSettings, GenerationSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Config(RecipeSettings):
    """Fine-tune a chat model on dialogues."""

    data: DataSettings
    generation: GenerationSettings = field(default_factory=GenerationSettings)


def make_task(config: Config):
    """Return the task: the chat template renders dialogues, and answers are checked for facts."""
    import peftkit
    from peftkit.tasks.causal_lm import CausalLMTask

    return CausalLMTask(config, peftkit.load_tokenizer(config.model.source))


if __name__ == "__main__":
    run_recipe(make_task, Config)
