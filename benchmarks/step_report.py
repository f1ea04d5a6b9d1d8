"""What `step.py` writes: all figures as JSON, and tables in Markdown with the goals beside them."""

import json
from statistics import median
from typing import Any

from benchmarks.step_arms import ARMS
from benchmarks.step_curves import differences
from benchmarks.step_traced import EXPLAINED_ARMS, EXPLAINED_ROWS

GIB, MIB = 2**30, 2**20
WHOLE = ("f", "f-quarter", "f-half", "f-three-quarters", "f-all", "f-weights")
CPU_GOALS = {"bf16 4x256": ("c", 0.30, 0.65), "nf4 1x2048": ("a", 0.30, 0.75)}
PEAK_GOALS = {"8B nf4 b1": (6.8, 13.3), "8B nf4 b8": (12.6, 44.4), "1B nf4 b8": (3.6, 31.6)}


def write_report(output, kind, about, found):
    """Write the results as OUTPUT.json and OUTPUT.md, and return the latter's text."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(each) for each in found)
    output.with_suffix(".json").write_text(
        json.dumps(about, indent=1)[:-2] + f',\n "results": [\n{lines}\n ]\n}}\n'
    )
    tables = {"cpu": _cpu, "cuda": _gpu, "small": _gpu, "traced": _gpu, "curves": _curves}[kind](
        found
    )
    text = "\n".join([*_introduction(kind, about), *tables]) + "\n"
    output.with_suffix(".md").write_text(text)
    return text


def _introduction(kind, about):
    machine, title = about["environment"], {
        "cpu": "One training step on a CPU",
        "cuda": "One training step on a GPU",
        "small": "One training step of a small Llama",
        "traced": "The memory of one training step on a GPU, traced without one",
        "curves": "Loss curves of PEFT's recipe and of peftkit",
    }[kind]  # fmt: skip
    packages = ", ".join(
        f"{name} {machine['packages'][name]}"
        for name in ("torch", "transformers", "peft", "bitsandbytes")
    )
    where = (
        machine["gpu"]
        if kind == "cuda"
        else f"{machine['processor']}, {machine['threads']} thread(s)"
    )
    yield from (
        f"# {title}",
        "",
        f"`{about['command']}` · {where}, {packages}, trl {about['trl']}",
        "",
    )
    if not about["finished"]:
        yield from (
            "**Not finished: the run was stopped, or still runs; rows, arms and tables are "
            "missing.**",
            "",
        )
    yield _ABOUT[kind]
    yield ""


_ABOUT = {
    "cpu": (
        "SmolLM2-135M, rows filled with sentences from film reviews. LoRA, r = 16, on all "
        "linear layers of the blocks; AdamW; bfloat16 autocast and `use_cache=False` where "
        "nothing else is said; no gradient clipping. Each arm lives in a process of its own, "
        "and they take their steps in turn. peftkit's loop has glibc keep the memory that is "
        "freed, and so do the arms that run its loop; with `--one-allocator`, all do. Seconds "
        "are medians; their ratios are medians of the ratios of steps that followed each other. "
        "Peaks are of forward and backward pass, above each arm's own weights, gradients among "
        "them, states of AdamW not. Saved bytes are those that one more token leaves in a "
        "block. The difference of the loss is the largest from (c) over all steps."
    ),
    "cuda": (
        "Random weights of the shapes of Llama 3, random tokens. Peaks are the allocator's, of "
        "everything."
    ),
    "small": "Four small blocks, to see that it runs.",
    "traced": (
        "The real code of transformers, PEFT, TRL, bitsandbytes and peftkit on fake tensors "
        "whose live storages are counted (`benchmarks/step_traced.py` says how, and what stands "
        "in for what). GiB = weights + adapters + two states of AdamW + the peak of all else, "
        "gradients among it. Nothing was computed, and no GPU was there: what the CUDA context, "
        "kernels and the allocator take is not in it. TRL trains a 4-bit model's adapters, with "
        "their states, in bfloat16."
    ),
    "curves": (
        "SmolLM2-135M in NF4, 4 x 64 tokens a step of sentences from film reviews, AdamW at "
        "2e-4. A seed makes order and first weights of the adapter. Compared is the loss of "
        "held-out sentences, every 20 steps."
    ),
}


def _by_row(found):
    rows: dict[str, Any] = {}
    for each in found:
        if "row" in each:
            rows.setdefault(each["row"], {})[each["arm"]] = each
    return rows


def _paired(one, other):
    return median(x / y for x, y in zip(one["seconds"], other["seconds"], strict=True))


def _ratio(arm, arms, base, of):
    other = arms.get(base, {})
    return of(arms[arm], other) if "peak" in other else None


def _cell(value, form):
    return "" if value is None else format(value, form)


def _peaks(one, other):
    return one["peak"] / other["peak"]


def _cpu(found):
    rows = _by_row(found)
    for row, arms in rows.items():
        yield from (f"## {row}", "")
        yield (
            "| | arm | weights MiB | peak MiB | of (a) | of (c) | saved B | of the floor | s "
            "| of (a) | of (c) | loss |"
        )
        yield "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
        for arm, each in arms.items():
            if "not_run" in each:
                yield f"| {arm} | {ARMS[arm].about}: {each['not_run']} | | | | | | | | | | |"
                continue
            memory = [_cell(_ratio(arm, arms, base, _peaks), ".2f") for base in "ac"]
            seconds = [_cell(_ratio(arm, arms, base, _paired), ".2f") for base in "ac"]
            saved = each["saved_per_token_and_block"]
            apart = max(
                abs(x - y)
                for x, y in zip(each["losses"], arms.get("c", each)["losses"], strict=True)
            )
            yield (
                f"| {arm} | {ARMS[arm].about} | {each['weights'] / MIB:.0f} | "
                f"{each['peak'] / MIB:.0f} | {memory[0]} | {memory[1]} | {saved:.0f} | "
                f"{saved / each['floor']:.2f} | {median(each['seconds']):.3f} | {seconds[0]} | "
                f"{seconds[1]} | {apart:.1e} |"
            )
        yield ""
    yield from _cpu_goals(rows)


def _cpu_goals(rows):
    yield from ("## Goals", "", "| row | goal: memory, time | " + " | ".join(WHOLE) + " |")
    yield "| --- | --- |" + " --- |" * len(WHOLE)
    for row, (base, memory, seconds) in CPU_GOALS.items():
        arms = rows.get(row, {})
        cells = []
        for arm in WHOLE:
            values = [
                _ratio(arm, arms, base, of) if "peak" in arms.get(arm, {}) else None
                for of in (_peaks, _paired)
            ]
            cells.append("" if None in values else _judged(values, (memory, seconds)))
        yield (
            f"| {row} | <= {memory:.2f}, <= {seconds:.2f} of ({base}) | " + " | ".join(cells) + " |"
        )
    yield from (
        "",
        "| row | less memory, less time than (d), as a ratio | " + " | ".join(WHOLE) + " |",
    )
    yield "| --- | --- |" + " --- |" * len(WHOLE)
    for row, arms in rows.items():
        cells = []
        for arm in WHOLE:
            values = [
                _ratio(arm, arms, "d", of) if "peak" in arms.get(arm, {}) else None
                for of in (_peaks, _paired)
            ]
            cells.append("" if None in values else _judged(values, (1, 1)))
        yield f"| {row} | < 1, < 1 | " + " | ".join(cells) + " |"


def _judged(values, goals):
    """Ratios, and whether they are what was wanted, in words."""
    words = ", ".join(f"{value:.2f}" for value in values)
    met = [value <= goal for value, goal in zip(values, goals, strict=True)]
    if all(met):
        return f"{words}: met"
    if not any(met):
        return f"{words}: missed"
    return f"{words}: memory met" if met[0] else f"{words}: time met"


def _gpu(found):
    rows = _by_row(found)
    for row, arms in rows.items():
        yield from (
            f"## {row}",
            "",
            "| | arm | GiB | weights | adapters | the rest | saved B | of the floor | tokens/s |",
        )
        yield "| --- | --- | --: | --: | --: | --: | --: | --: | --: |"
        for arm, each in arms.items():
            if each.get("total") is None:
                speed = (
                    f"{each['tokens_per_second']:.0f}"
                    if "tokens_per_second" in each
                    else each.get("not_run", "")
                )
                yield f"| {arm} | {ARMS[arm].about} | | | | | | | {speed} |"
                continue
            rest = each["total"] - each["weights"] - each["adapters"]
            saved = each.get("saved_per_token_and_block")
            yield (
                f"| {arm} | {ARMS[arm].about} | {each['total'] / GIB:.2f} | "
                f"{each['weights'] / GIB:.2f} | {each['adapters'] / GIB:.2f} | {rest / GIB:.2f} | "
                f"{_cell(saved, '.0f')} | {_cell(saved and saved / each['floor'], '.3f')} | "
                f"{_cell(each.get('tokens_per_second'), '.0f')} |"
            )
        yield ""
    yield from _gpu_goals(rows)
    yield from _longest(found)
    yield from _at_peak(rows)


def _gpu_goals(rows):
    yield from (
        "## Goals",
        "",
        "| row | goal GiB | recipe (a), in the issue | (a), here | (d), here | peftkit |",
    )
    yield "| --- | --: | --: | --: | --: | --- |"
    for row, arms in rows.items():
        totals = {arm: each["total"] / GIB for arm, each in arms.items() if each.get("total")}
        goal, recipe = PEAK_GOALS.get(row, (None, None))
        ours = {arm: totals[arm] for arm in WHOLE if arm in totals}
        if not ours:
            continue
        best = min(ours, key=lambda arm: ours[arm])
        limit = goal if goal is not None else totals.get("d", float("inf"))
        others = [_cell(totals.get(arm), ".2f") for arm in "ad"]
        words = [
            f"{best} {ours[best]:.2f}",
            "" if goal is None else "met" if ours[best] <= limit else "missed",
        ]
        if "d" in totals:
            words.append("less than (d)" if ours[best] < totals["d"] else "more than (d)")
        cells = [
            row,
            _cell(goal, ".1f"),
            _cell(recipe, ".1f"),
            *others,
            ", ".join(filter(None, words)),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _longest(found):
    known = [each for each in found if "longest" in each]
    if known:
        budgets = list(known[0]["longest"])
        yield from ("## The longest sequence that fits, at batch 1", "")
        yield (
            "| model | storage | arm | " + " | ".join(f"{budget} GiB" for budget in budgets) + " |"
        )
        yield "| --- | --- | --- |" + " --: |" * len(budgets)
        for each in known:
            lengths = " | ".join(
                f"{length:,}" if length else "—" for length in each["longest"].values()
            )
            yield f"| {each['model']} | {each['storage']} | {each['arm']} | {lengths} |"
        yield ""
        yield "Straight lines between traced lengths, rounded down to 64; “—”: not even 512 tokens."
        yield ""


def _at_peak(rows):
    for row in EXPLAINED_ROWS:
        for arm in EXPLAINED_ARMS:
            each = rows.get(row, {}).get(arm, {})
            if each.get("at_peak"):
                yield from (f"What is alive at the peak of {row}, {arm}:", "")
                yield from (
                    f"- {size / MIB:.0f} MiB {kind}" for kind, size in each["at_peak"]["largest"]
                )
                yield from (f"- last of all: {each['at_peak']['last']}", "")


def _curves(found):
    yield (
        "| between | mean difference of held-out losses | largest "
        "| mean difference of the losses of steps |"
    )
    yield "| --- | --: | --: | --: |"
    apart = differences(found)
    for name, each in apart.items():
        held_out = f"{each['mean']:.5f} | {each['largest']:.5f}"
        yield f"| {name} | {held_out} | {each['mean_of_steps']:.5f} |"
    seeds, ours = apart["two seeds of (a)"], apart["peftkit and (a), one seed"]
    met = ours["mean"] < seeds["mean"] and ours["largest"] < seeds["largest"]
    yield from (
        "",
        "Goal: peftkit differs from (a) by less than two seeds of (a) do: "
        f"{'met' if met else 'missed'}.",
        "",
    )
    yield "| step | (a) seed 0 | (a) seed 1 | peftkit seed 0 | (c) seed 0 |"
    yield "| --: | --: | --: | --: | --: |"
    for points in zip(*(run["held_out"] for run in found), strict=True):
        yield f"| {points[0][0]} | " + " | ".join(f"{loss:.4f}" for _, loss in points) + " |"
