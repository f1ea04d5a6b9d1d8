"""Fine-tune a chat model on dialogues: a 4-, 8- or 16-bit backbone, an adapter, and the loss on the assistant's answers.

    accelerate launch recipes/chat.py --config recipes/configs/chat/quickstart.yaml

Rows are {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or {"text": ...}. A held-out
chat row may have "expect": a list of strings that the answer to its last question must contain; the share of answers that
do is reported as exact-fact accuracy.
"""

from dataclasses import field

from pydantic import NonNegativeInt, PositiveInt

from peftkit.config import run_recipe, section
from peftkit.sections import Adapter, DataSettings, LoraSettings, ModelSettings
from peftkit.training.settings import TrainSettings


@section
class Config:
    """Fine-tune a chat model on dialogues."""

    model: ModelSettings
    data: DataSettings
    adapter: Adapter = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    run_dir: str
    """Takes the adapter, the report, the metrics and the checkpoints."""
    seed: NonNegativeInt = 0
    """Seed of the adapter's start, of dropout and of the order of the examples."""
    max_new_tokens: PositiveInt = 64
    """Longest answer when the model is tried on the held-out dialogues."""
    samples: int = 12
    """Answers to show in the report."""
    merge: bool = False
    """Also write the backbone with the adapter merged in, as a 16-bit model."""

    def __post_init__(self) -> None:
        if self.train.evaluate_every is not None and self.data.evaluation is None:
            raise ValueError("train.evaluate_every needs held-out rows: set data.evaluation")


def main(config: Config) -> None:
    """Load, attach, train, evaluate, save, reload, merge."""
    import peftkit
    from peftkit.data.collation import PadRight
    from peftkit.data.loading import load_examples
    from peftkit.data.questions import fact_accuracy, questions
    from peftkit.files import staged_directory
    from peftkit.generation import answer
    from peftkit.merging import save_merged
    from peftkit.recording import summary
    from peftkit.training.evaluation import evaluate
    from peftkit.training.loop import Training, accelerator_for
    from peftkit.training.report import Measured, write_report
    from peftkit.training.run import Run

    run = Run(config)
    tokenizer = peftkit.load_tokenizer(config.model.source)
    train, rows, kind = load_examples(config.data, config.data.train, tokenizer)
    run.say(f"{config.data.train}: {kind}, {train}")
    held_out = None
    if config.data.evaluation is not None:
        held_out, rows, kind = load_examples(config.data, config.data.evaluation, tokenizer)
        run.say(f"{config.data.evaluation}: {kind}, {held_out}")
    asked = questions(rows, kind, tokenizer, system=config.data.system, count=config.samples)

    model = peftkit.attach(peftkit.load_backbone(**config.model.arguments()), config.adapter.build())
    run.say(summary(model))
    run.remember("model", peftkit.record(model))
    accelerator = accelerator_for(config.train, model, run.directory)
    run.start_trackers(accelerator)
    collate = PadRight(tokenizer.pad_token_id)

    def measure(model) -> Measured:
        """Return loss, perplexity and fact accuracy on the held-out rows (the training rows if there are none)."""
        batch_size = config.train.evaluation_batch_size or config.train.batch_size
        metrics = evaluate(model, (held_out or train).examples, collate, accelerator, batch_size=batch_size)
        prompts = [question.prompt for question in asked if run.is_main]
        answers = answer(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens)
        return Measured(metrics | fact_accuracy(asked, answers), answers)

    before = Measured(**(run.remembered("before") or run.remember("before", vars(measure(model)))))
    run.say(f"before: {before.metrics}")
    training = Training(
        model, train.examples, collate, config.train, run.directory, accelerator,
        evaluation=held_out.examples if held_out else (), seed=config.seed,
    )  # fmt: skip
    run.exit_if_interrupted(training.run())

    if run.is_main:
        peftkit.save(model, run.directory / "adapter")
        with staged_directory(run.directory / "adapter") as stage:
            tokenizer.save_pretrained(stage)
    accelerator.wait_for_everyone()
    model = peftkit.load(peftkit.detach(model), run.directory / "adapter")  # what is measured is what was saved
    measured, remarks = {"before": before, "after": measure(model)}, []
    run.say(f"after: {measured['after'].metrics}")
    if config.merge:
        merged = peftkit.merge(model)
        measured["merged"] = measure(merged)
        remarks.append(f"{summary(merged)}.")
        if run.is_main:
            save_merged(merged, tokenizer, run.directory / "merged")
    if run.is_main:
        title = f"{config.model.source} on {config.data.train}"
        report = write_report(run.directory, title, measured, asked, samples=config.samples, remarks=remarks)
        run.say(f"the adapter is in {run.directory / 'adapter'}, the report in {report}")
    accelerator.end_training()


if __name__ == "__main__":
    run_recipe(main, Config)
