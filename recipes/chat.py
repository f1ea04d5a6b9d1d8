"""Fine-tune a chat model on dialogues: a 4-, 8- or 16-bit backbone, an adapter, and the loss on the assistant's answers.

    accelerate launch recipes/chat.py --config recipes/configs/chat/quickstart.yaml

Rows are {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or {"text": ...}. A held-out
chat row may have "expect": a list of strings that the answer to its last question must contain; the share of answers that
do is reported as exact-fact accuracy.
"""

from dataclasses import field

from pydantic import PositiveInt

from peftkit.config import parse, section
from peftkit.sections import DataSettings, LoraSettings, ModelSettings
from peftkit.training.settings import TrainSettings


@section
class Config:
    """Fine-tune a chat model on dialogues."""

    model: ModelSettings
    data: DataSettings
    adapter: LoraSettings = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    run_dir: str
    """Takes the adapter, the report, the metrics and the checkpoints."""
    seed: int = 0
    """Seed of the adapter's start, of dropout and of the order of the examples."""
    max_new_tokens: PositiveInt = 64
    """Longest answer when the model is tried on the held-out dialogues."""
    samples: int = 12
    """Answers to show in the report."""
    merge: bool = False
    """Also write the backbone with the adapter merged in, as a 16-bit model."""


def main(config: Config) -> None:
    """Load, attach, train, evaluate, save, reload, merge."""
    import peftkit
    from peftkit.data.collation import PadRight
    from peftkit.data.loading import load_examples
    from peftkit.data.rendering import prompt_text
    from peftkit.files import staged_directory
    from peftkit.generation import answer, states
    from peftkit.training.loop import accelerator_for, evaluate, fit
    from peftkit.training.report import Sample, write_report
    from peftkit.training.run import Run

    run = Run(config)
    tokenizer = peftkit.load_tokenizer(config.model.source)
    train, _, kind = load_examples(config.data, config.data.train, tokenizer)
    run.say(f"{config.data.train}: {kind}, {train}")
    held_out, rows = train, []
    if config.data.evaluation is not None:
        held_out, rows, kind = load_examples(config.data, config.data.evaluation, tokenizer)
        run.say(f"{config.data.evaluation}: {kind}, {held_out}")
    asked = [row for row in rows if row.get("expect")] if kind == "chat" else []
    prompts = [prompt_text(row["messages"][:-1], tokenizer, config.data.system) for row in asked]

    backbone = peftkit.load_backbone(
        config.model.source,
        quantization=config.model.quantization,
        dtype=config.model.torch_dtype,
        attention=config.model.attention,
    )
    model = peftkit.attach(backbone, config.adapter.build())
    run.say(f"{peftkit.record(model)}")
    accelerator = accelerator_for(config.train, model, run.directory)
    run.start_trackers(accelerator)
    collate = PadRight(tokenizer.pad_token_id)

    def assess(model):
        """Return loss, perplexity and fact accuracy on the held-out rows, and the answers."""
        metrics = evaluate(model, held_out.examples, collate, accelerator, batch_size=config.train.batch_size)
        answers = answer(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens) if run.is_main else []
        right = [states(text, row["expect"]) for text, row in zip(answers, asked, strict=run.is_main)]
        return metrics | ({"exact-fact accuracy": sum(right) / len(right)} if right else {}), answers

    before = run.remembered("before") or run.remember(
        "before", dict(zip(("metrics", "answers"), assess(model), strict=True))
    )
    run.say(f"before: {before['metrics']}")
    outcome = fit(
        model, train.examples, collate, config.train, run.directory, accelerator,
        evaluation=held_out.examples if rows else (), seed=config.seed,
    )  # fmt: skip
    run.exit_if_interrupted(outcome)

    remarks = []
    if run.is_main:
        peftkit.save(model, run.directory / "adapter")
        tokenizer.save_pretrained(run.directory / "adapter")
    accelerator.wait_for_everyone()
    model = peftkit.load(peftkit.detach(model), run.directory / "adapter")  # what is measured is what was saved
    after, answers = assess(model)
    run.say(f"after: {after}")
    if config.merge and run.is_main:
        merged = peftkit.merge(model)
        with staged_directory(run.directory / "merged") as stage:
            merged.save_pretrained(stage)
            tokenizer.save_pretrained(stage)
        same = sum(
            a == b
            for a, b in zip(
                answer(merged, tokenizer, prompts, max_new_tokens=config.max_new_tokens), answers, strict=True
            )
        )
        remarks.append(
            f"Merged model: {same} of {len(answers)} answers are the same to the letter; {peftkit.record(merged)['merge']}."
        )
    if run.is_main:
        shown = range(0, len(asked), max(1, len(asked) // max(1, config.samples)))
        samples = [
            Sample(asked[i]["messages"][-2]["content"], before["answers"][i], answers[i], ", ".join(asked[i]["expect"]))
            for i in shown
        ]
        report = write_report(run.directory, f"chat: {config.run_dir}", before["metrics"], after, samples, remarks)
        run.say(f"the adapter is in {run.directory / 'adapter'}, the report in {report}")
    accelerator.end_training()


if __name__ == "__main__":
    main(parse(Config))
