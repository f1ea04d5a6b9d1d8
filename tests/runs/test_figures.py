import json
import warnings

import pytest

from peftkit.data.preview.statistics import Bin
from peftkit.runs import figures
from peftkit.runs.figures import (
    draw_all,
    draw_confusion,
    draw_lengths,
    draw_losses,
    draw_ranks,
    short_names,
)


def train_lines(**changes):
    values = {
        "loss": 2.0,
        "learning_rate": 1e-4,
        "gradient_norm": 0.5,
        "seconds": 1.0,
        "items": 10.0,
        **changes,
    }
    return [{"step": step, "kind": "train", **values} for step in range(1, 6)]


EVALUATIONS = [{"step": 5, "kind": "evaluation", "loss": 2.5}]
RANKS = [
    {"step": step, "kind": "ranks", "ranks": {"layers.0.q": 8, "layers.1.q": 8 - step}}
    for step in (1, 2)
]


def size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def write_run(directory, lines, confusion=None):
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "after.json").write_text(
        json.dumps({"metrics": {}, "predictions": [], "confusion": confusion})
    )


def test_a_run_with_all_data_has_every_picture(tmp_path):
    write_run(
        tmp_path,
        [*train_lines(memory_gib=1.5), *EVALUATIONS, *RANKS],
        {"labels": ["a", "b"], "counts": [[3, 1], [0, 2]]},
    )
    drawn = draw_all(tmp_path)
    assert list(drawn) == ["loss", "schedule", "memory", "ranks", "confusion"]
    assert all(min(size(path)) > 200 for path in drawn.values())


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([], []),
        (EVALUATIONS, ["loss"]),
        (train_lines(), ["loss", "schedule"]),
        (train_lines(memory_gib=None), ["loss", "schedule"]),
    ],
)
def test_a_run_has_no_picture_that_it_has_no_data_for(tmp_path, lines, names):
    write_run(tmp_path, lines)
    assert list(draw_all(tmp_path)) == names
    assert len(list(tmp_path.glob("*.png"))) == len(names)


def test_an_empty_run_directory_has_no_pictures(tmp_path):
    assert draw_all(tmp_path) == {}


def test_pictures_leave_out_numbers_that_are_not_finite(tmp_path):
    lines = [
        *train_lines(),
        {
            "step": 6,
            "kind": "train",
            "loss": float("nan"),
            "gradient_norm": float("inf"),
            "learning_rate": 0.0,
        },
    ]
    write_run(tmp_path, lines)
    assert list(draw_all(tmp_path)) == ["loss", "schedule"]
    assert figures.points(lines, "train", "loss")[-1] == (5, 2.0)


@pytest.mark.parametrize("many", [2, 3, 10, 20, 40, 60])
def test_confusion_matrices_of_all_sizes_fit_their_picture(tmp_path, many):
    labels = [f"a class with a rather long name, number {n}" for n in range(many)]
    counts = [[100_000 * (i == j) + j for j in range(many)] for i in range(many)]
    counts[0] = [0] * many
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one that the layout has no room
        draw_confusion(labels, counts, tmp_path / "confusion.png")
    width, height = size(tmp_path / "confusion.png")
    assert 300 < height < width <= 15 * 120


def test_names_of_classes_in_any_script_and_with_dollars_are_drawn(tmp_path):
    draw_confusion(
        ["卡片", "$x$ _{", "अच्छा"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], tmp_path / "confusion.png"
    )
    assert size(tmp_path / "confusion.png")[0] > 300


@pytest.mark.parametrize("layers", [1, 72, 300])
def test_the_ranks_of_many_layers_fit_their_picture(tmp_path, layers):
    names = [f"model.layers.{n // 6}.mlp.{n % 6}_proj" for n in range(layers)]
    lines = [
        {"step": 10 * step, "kind": "ranks", "ranks": dict.fromkeys(names, 12 - step % 12)}
        for step in range(30)
    ]
    draw_ranks(lines, tmp_path / "ranks.png")
    assert size(tmp_path / "ranks.png")[1] <= 14 * 120


def test_layer_names_are_shortened_as_long_as_they_stay_different():
    assert short_names(["m.layers.0.attn.q", "m.layers.0.mlp.up"]) == ["0 q", "0 up"]
    assert short_names(["m.layers.0.attn.proj", "m.layers.0.mlp.proj"]) == ["attn.proj", "mlp.proj"]
    assert short_names(["one"]) == ["one"]


def test_smoothing_keeps_a_straight_line_and_does_not_lag():
    line = [(step, 3.0) for step in range(50)]
    assert [value for _, value in figures._smooth(line)] == pytest.approx([3.0] * 50)
    slope = figures._smooth([(step, float(step)) for step in range(101)])
    assert slope[50] == (50, pytest.approx(50.0))


def test_a_failed_drawing_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    draw_losses(train_lines(), path)
    before = path.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_losses(EVALUATIONS, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("max_length", [None, 20, 5000])
def test_lengths_are_drawn_with_and_without_a_longest_one(tmp_path, max_length):
    path = tmp_path / "lengths.png"
    draw_lengths([Bin(0, 9, 4), Bin(10, 19, 0), Bin(20, 20, 7)], max_length, path)
    assert min(size(path)) > 200
