"""A tiny job for each recipe: a few rows, a small model with random weights, a handful of steps."""

import json
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from peftkit.config.reading import build
from peftkit.methods import NAMES as METHOD_NAMES
from peftkit.runs.finetune import finetune
from peftkit.runs.recipes import load_recipe, recipe_named

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "recipes" / "models"
NAMES = (
    "text_classification", "text_pair", "token_classification", "causal_lm",
    "chat", "seq2seq", "image_classification", "speech_recognition",
)  # fmt: skip
SMALL = {
    "lora": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "bottleneck": {"reduction_factor": 8},
    "prefix": {"num_virtual_tokens": 4},
}
METHODS = {name: {"method": name} | SMALL.get(name, {}) for name in METHOD_NAMES}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def rows_of(name, directory, count):
    """Rows that can be learned: the label, the tag or the target can be told from the input."""
    even = [number % 2 == 0 for number in range(count)]
    if name == "text_classification":
        return [
            {"text": f"{'good' if e else 'bad'} film {i}", "label": "up" if e else "down"}
            for i, e in enumerate(even)
        ]
    if name == "text_pair":
        return [
            {
                "text": f"likes {'sea' if e else 'sky'}",
                "other": f"sea {i}",
                "label": int(e),
                "group": i // 4,
            }
            for i, e in enumerate(even)
        ]
    if name == "token_classification":
        return [
            {"text": f"{i} Anna saw Rome", "spans": [
                {"start": len(str(i)) + 1, "end": len(str(i)) + 5, "label": "PER"},
                {"start": len(str(i)) + 10, "end": len(str(i)) + 14, "label": "LOC"},
            ]} for i in range(count)
        ]  # fmt: skip
    if name == "causal_lm":
        return [
            {"text": f"the price of kite number {i} is {i} pounds " * (1 + i % 3)}
            for i in range(count)
        ]
    if name == "chat":
        answer = [{"role": "assistant", "content": "It is 5."}]
        return [
            {"messages": [{"role": "user", "content": f"price {i}?"}, *answer], "expect": ["5"]}
            for i in range(count)
        ]
    if name == "seq2seq":
        return [{"source": f"say {i}", "target": f"sage {i}"} for i in range(count)]
    if name == "image_classification":
        return [image_row(directory, i, "red" if e else "blue") for i, e in enumerate(even)]
    return [sound_row(directory, i, "low" if e else "high") for i, e in enumerate(even)]


def image_row(directory, number, label):
    path = directory / f"{number}-{label}.png"
    Image.new("RGB", (20, 24), COLOURS[label]).save(path)
    return {"image": path.name, "label": label}


def sound_row(directory, number, text):
    path = directory / f"{number}-{text}.wav"
    pitch = 220 if text == "low" else 880
    samples = np.sin(np.arange(8000) / 8000 * pitch * 2 * np.pi)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)  # half the model's rate
        file.writeframes((samples * 12000).astype("<i2").tobytes())
    return {"audio": path.name, "text": text}


def config_values(
    name, directory, llama_dir, *, method="lora", quantization=None, count=10, steps=4
):
    """The tree of values of a config, with its data written into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    sources = {
        "causal_lm": llama_dir, "chat": llama_dir,
        "seq2seq": MODELS / "bart-bytes" / "config.json",
        "image_classification": MODELS / "vit-digits" / "config.json",
        "speech_recognition": MODELS / "whisper-tones" / "config.json",
    }  # fmt: skip
    source = sources.get(name, MODELS / "char-bert-zh" / "config.json")
    data = {
        "train": write_jsonl(directory / "train.jsonl", rows_of(name, directory, count)),
        "evaluation": write_jsonl(
            directory / "held_out.jsonl", rows_of(name, directory, count)[:6]
        ),
    }
    if name not in ("image_classification",):
        data["max_length"] = 64
    train = {
        "max_steps": steps,
        "epochs": 20,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "evaluate_every": 2,
    }
    values = {
        "model": {
            "source": str(source),
            "dtype": "bfloat16" if quantization else "float32",
            "quantization": quantization,
        },
        "adapter": METHODS[method],
        "data": data,
        "train": train,
        "run_dir": str(directory / "run"),
    }
    if name in ("causal_lm", "chat", "seq2seq", "speech_recognition"):
        values["generation"] = {"max_new_tokens": 6}
    return values


def run(name, values):
    """Run a recipe in this process and return its directory."""
    recipe = load_recipe(recipe_named(name))
    config = build(recipe.Config, values, "a test")
    finetune(recipe.make_task, config, recipe_named(name))
    return Path(values["run_dir"])
