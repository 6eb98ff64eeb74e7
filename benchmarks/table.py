"""Write the figures in README and docs from results/.

python benchmarks/table.py          (the end of make bench and of make bench-full)
"""

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WIDTH = 125


def _best(results: dict[str, Any], candidate: str) -> dict[str, Any]:
    of_it = [result for name, result in results.items() if name.split()[0] == candidate]
    best: dict[str, Any] = max(of_it, key=lambda result: float(result["tokens_per_second"]))
    return best


def training_rows(speed: dict[str, Any]) -> list[str]:
    """Return the table of training speed, useful tokens a second."""
    rows = [
        "| training, real tokens a second | plain | tuned | lorafit | times plain | times tuned |",
        "|---|---|---|---|---|---|",
    ]
    for shape, results in speed["training"].items():
        plain, tuned, ours = (_best(results, candidate) for candidate in ("plain", "tuned", "ours"))
        cells = [f"{result['tokens_per_second']:,.0f}" for result in (plain, tuned, ours)]
        ratios = speed["training_ratios"][shape]
        times = f"**{ratios['ours / plain']:.1f}** | **{ratios['ours / best-tuned']:.1f}**"
        rows.append(f"| {shape}, bf16 | {' | '.join(cells)} | {times} |")
        if "fp32: ours / best-tuned" in ratios:
            tuned, ours = _best(results, "tuned-fp32"), _best(results, "ours-fp32")
            cells = [f"{result['tokens_per_second']:,.0f}" for result in (plain, tuned, ours)]
            times = f"{ours['tokens_per_second'] / plain['tokens_per_second']:.1f}"
            rows.append(f"| {shape}, fp32 | {' | '.join(cells)} | {times} | {ratios['fp32: ours / best-tuned']:.1f} |")
    return rows


def prediction_rows(speed: dict[str, Any]) -> list[str]:
    """Return the table of prediction speed."""
    rows = [
        "| prediction, bundled encoder | reviews a second | lorafit's is | largest logit gap |",
        "|---|---|---|---|",
    ]
    ratios = speed["prediction_ratios"]
    for name, result in sorted(speed["prediction"].items(), key=lambda item: item[1]["reviews_per_second"]):
        candidate = name.split()[0]
        ratio = ratios.get(f"ours / {candidate}")
        times = "" if ratio is None else f"{ratio:.2f} times" if ratio < 1 else f"{ratio:.1f} times"
        gap = f"{result['largest_logit_gap']:.0e}" if "largest_logit_gap" in result else ""
        shown = candidate.replace("ours-fp32", "lorafit, fp32").replace("ours", "**lorafit**")
        rows.append(f"| {shown} | {result['reviews_per_second']:.0f} | {times} | {gap} |")
    return rows


def sentences(speed: dict[str, Any], accuracy: dict[str, Any]) -> list[str]:
    """Return what stands beside the tables: shares of the ceiling, memory, accuracy."""
    ratios = speed["training_ratios"]
    shares = [f"{of_it['share of the bf16 ceiling']:.0%}" for of_it in ratios.values()]
    memory = [f"{of_it['peak memory: ours / tuned, equal batch']:.2f}" for of_it in ratios.values()]
    once, beside = accuracy["one_pass"], accuracy["beside_the_plain_loop"]
    targets = accuracy["recipe"]["adapter"]["targets"]
    targets = targets if isinstance(targets, str) else ", ".join(targets)
    ceilings = [f"{speed['bf16_ceiling_gflops'][shape]:.0f}" for shape in ratios]
    small, large = accuracy["cost_per_review_milliseconds"].values()
    ours, kept, plain = (f"{beside[who]['accuracy']:.4f}" for who in ("ours", "ours_dropout_kept", "plain"))
    kept_seconds, seconds = (f"{beside[who]['training_seconds']:.0f} s" for who in ("ours_dropout_kept", "ours"))
    items = [
        f"Share of this machine's own bf16 matrix products, measured in between: {shares[0]} of {ceilings[0]} GFLOP/s "
        f"on the bundled encoder, {shares[1]} of {ceilings[1]} on bert-base's shape. Peak memory beside the tuned peer "
        f"at the same batch size: {memory[0]} and {memory[1]} of it.",
        f"{once['training_seconds']:.0f} seconds of training give {once['accuracy']:.4f} on 2,000 untouched reviews: "
        f"mean of three seeds, standard deviation {once['accuracy_standard_deviation']:.4f}; "
        f"`recipes/imdb-one-pass.toml`, adapters on {targets}; head on the "
        f"{accuracy['recipe']['encoder']['pooling']} token.",
        f"Beside the plain loop on the same texts and seeds (1,700 reviews of up to 128 tokens, once): {ours} "
        f"against {plain}, means of three seeds. With BERT's own dropout kept lorafit scores {kept}, and takes "
        f"{kept_seconds} in place of {seconds}.",
        f"A review costs {small:.2f} ms in an epoch of 2,000 and {large:.2f} ms in one of 23,000 (64 tokens).",
    ]
    return [textwrap.fill(item, WIDTH, initial_indent="* ", subsequent_indent="  ") for item in items]


def conditions(speed: dict[str, Any]) -> list[str]:
    """Return where and how it was measured."""
    packages = speed["machine"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft"))
    processor = " ".join(speed["machine"]["processor"].split()[:2])
    text = (
        f"{speed['threads']} cores of an {processor} with AVX512-BF16; {versions}; real IMDB reviews of up to 512 "
        "tokens, r=8 on query and value; bert-base with random weights; medians of "
        f"{speed['rounds']} rounds in turn. Plain is transformers' Trainer with PEFT as it comes: fp32, padded batches "
        "of 16, BERT's own dropout. Tuned is the same in bf16 with batches of like length, SDPA and no dropout, at its "
        "best batch size. All of it: [results/speed.json](results/speed.json), "
        "[results/accuracy.json](results/accuracy.json)."
    )
    return [textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)]


def demo() -> list[str]:
    """Return what the demo gives and costs."""
    measured = _results("main_job")
    run, tokenizing = measured["demo"], measured["tokenizing"]
    scores = run["test"]
    adapted, points = scores["adapted"]["accuracy"], scores["improvement_points"]
    low, high = scores["adapted"]["accuracy_interval"]
    tfidf, calibration = scores["baselines"]["tfidf"], scores["calibration"]
    parameters = run["parameters"]
    rows = [
        (
            f"base accuracy (the same encoder with an untrained head), {scores['n']:,} test reviews",
            f"{scores['base']['accuracy']:.4f}",
        ),
        ("adapted accuracy, the same reviews", f"**{adapted:.4f}**, 95% interval {low:.3f} to {high:.3f}"),
        (
            "TF-IDF with logistic regression, the same reviews",
            f"{tfidf['accuracy']:.4f} (McNemar's p beside adapted: {tfidf['mcnemar_p']:.2g})",
        ),
        ("expected calibration error", f"{calibration['ece_after']:.3f}; {calibration['ece_before']:.3f} uncalibrated"),
        ("improvement", f"{points:.2f} percentage points, {scores['relative_improvement']:.1%} relative"),
        ("time, start to end, after installation", f"{run['wall_seconds'] / 60:.1f} min"),
        ("peak memory", f"{run['peak_memory_bytes'] / 1e9:.1f} GB"),
        (
            "parameters trained",
            f"{parameters['trainable']:,} of {parameters['total']:,}; "
            f"the adapter's file takes {run['adapter_bytes'] / 1e6:.1f} MB",
        ),
        (
            f"tokenizing {tokenizing['texts']:,} reviews, then from the cache",
            f"{tokenizing['seconds']:.1f} s, {tokenizing['seconds_from_cache']:.2f} s",
        ),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def speed() -> list[str]:
    """Return the tables of speed, what stands beside them, and the conditions."""
    measured, accuracy = _results("speed"), _results("accuracy")
    parts = (training_rows(measured), prediction_rows(measured), sentences(measured, accuracy), conditions(measured))
    return "\n\n".join("\n".join(part) for part in parts).splitlines()


def handover() -> list[str]:
    """Return what handing an adapter over costs."""
    measured = _results("handover")
    bundled, size = measured["bundled"], measured["bert_base_rank_1"]
    rows = [
        ("bundle with r=1 on bert-base's shape, tokenizer left out", f"{size['bytes_without_tokenizer'] / 1e3:.0f} kB"),
        ("proof at save, bundled encoder", f"{bundled['proof_seconds']:.1f} s"),
        (
            "checkpoint, bundled encoder, every linear layer",
            f"{bundled['checkpoint_seconds']:.2f} s, {bundled['checkpoint_bytes'] / 1e6:.1f} MB",
        ),
        ("cold process to first answer", f"{bundled['cold_seconds_to_first_answer']:.1f} s"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def quality() -> list[str]:
    """Return the accuracy that the bundled encoder reaches: a row for each number of reviews and way of reading."""
    rows = [
        "| training reviews | head reads | accuracy, mean | each seed | TF-IDF | ECE: before -> after | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    readings = {"first": "the first token", "mean": "the mean"}
    for size in QUALITY_SIZES:
        for pooling, reading in readings.items():
            seeds = [row for row in _quality_rows(str(size)) if row["recipe"]["encoder"]["pooling"] == pooling]
            rows.append(f"| {size:,} | {reading} | {_over_seeds(seeds)} |")
    rows.append(f"| Rotten Tomatoes, 6,000 | the first token | {_over_seeds(_quality_rows('rotten-tomatoes'))} |")
    return rows


def long_texts() -> list[str]:
    """Return what each way of reading long texts gives in windows of each size, and how many tokens it reads."""
    rows = _quality_rows("long-texts")
    sizes = sorted({row["recipe"]["data"]["max_tokens"] for row in rows})
    policies = list(dict.fromkeys(row["recipe"]["data"]["long_text"] for row in rows))
    lines = [
        f"| `data.long_text` | {' | '.join(f'{size} tokens' for size in sizes)} |",
        f"|---|{'---|' * len(sizes)}",
    ]
    for policy in policies:
        cells = []
        for size in sizes:
            wanted = {"max_tokens": size, "long_text": policy}
            found = [row for row in rows if wanted.items() <= row["recipe"]["data"].items()]
            cells += [f"{row['accuracy']:.4f} ({row['tokens'] / 1e6:.2f} million)" for row in found] or [""]
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    return lines


QUALITY_SIZES = (1400, 4000, 22_500)


def exports() -> list[str]:
    """Return what each form of the demo's bundle keeps, and what it gains."""
    measured = _results("exports")["forms"]
    rows = [
        "| form | size | reviews a second | lorafit's own, beside it | largest logit gap | texts | accuracy, its gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for form, found in measured.items():
        if "refused" in found:
            rows.append(f"| `{form}` | | | | | | refused: {found['refused'].partition(': ')[2]} |")
            continue
        accuracy = found["accuracy"]
        low, high = accuracy["gap_interval"]
        rows.append(
            f"| `{form}` | {found['bytes'] / 1e6:.0f} MB | {found['texts_per_second']:.0f} "
            f"| {found['lorafit_texts_per_second']:.0f} | {found['largest_logit_gap']:.0e} | {found['texts']:,} "
            f"| {accuracy['export']:.3f}, {accuracy['gap_points']:+.1f} points ({low:+.1f} to {high:+.1f}) |"
        )
    return [*rows, "", _measured_at(_results("exports"))]


def bulk() -> list[str]:
    """Return bulk prediction beside its engines, and its memory."""
    measured = _results("bulk")
    rows = [
        "| texts a second | bulk | its engine alone | share | OpenVINO's own, the same batches | share |",
        "|---|---|---|---|---|---|",
    ]
    for texts, found in measured["rates"].items():
        for rate in found:
            own = rate.get("runtime_texts_per_second")
            rows.append(
                f"| {rate['texts']:,} {texts}, {rate['mean_tokens']:.0f} tokens, {rate['backend']} "
                f"| {rate['bulk_texts_per_second']:,.0f} | {rate['engine_texts_per_second']:,.0f} "
                f"| **{rate['bulk_share_of_engine']:.2f}** | "
                + (f"{own:,.0f} | **{rate['bulk_share_of_runtime']:.2f}** |" if own else " | |")
            )
    few, many = measured["memory"]
    more = many["peak_memory_bytes"] / few["peak_memory_bytes"] - 1
    rows += [
        "",
        f"Peak memory: {few['peak_memory_bytes'] / 1e6:,.0f} MB with {few['rows']:,} short texts, "
        f"{many['peak_memory_bytes'] / 1e6:,.0f} MB ({more:+.1%}) with {many['rows']:,}, which took "
        f"{many['seconds'] / 60:.1f} min, start included. {_measured_at(measured)}",
    ]
    return rows


def serve() -> list[str]:
    """Return the service's figures beside what was asked of it."""
    measured = _results("serve")
    one, mixed, many = measured["one_adapter"], measured["mixed"], measured["many"]
    half, int8 = one["half_load"], measured["int8"]
    return [
        "| the service, one review a request | |",
        "|---|---|",
        f"| saturated by {measured['connections']} connections | **{one['service_per_second']:.0f} reviews/s**, "
        f"{one['service_share_of_bulk']:.2f} of bulk prediction's {one['bulk_per_second']:.0f} |",
        f"| FastAPI + transformers pipeline, the same load | {one['plain_per_second']:.1f} reviews/s: "
        f"lorafit's is **{one['service_times_plain']:.1f} times** that |",
        f"| the same, one connection | {one['plain_one_connection_per_second']:.1f} reviews/s: "
        f"{one['service_times_plain_one_connection']:.1f} times |",
        f"| at half of its rate, arriving by chance | median {half['median_ms']:.0f} ms, 99% within "
        f"{half['p99_ms']:.0f} ms, {half['p99_share_of_median']:.1f} times the median |",
        f"| 8 adapters of other ranks, layers and labels, mixed | {mixed['eight_per_second']:.0f} reviews/s, "
        f"**{mixed['eight_share_of_one']:.2f}** of one's {mixed['one_per_second']:.0f} |",
        f"| memory with 64 adapters (r=8) | {many['bytes_with_64'] / 1e6:,.0f} MB, "
        f"**{many['memory_64_times_1']:.2f} times** that with one |",
        f"| from PUT to a new adapter's first answer | {max(many['new_adapter_seconds']):.2f} s at most |",
        f"| on its openvino-int8 export, saturated | {int8['per_second']:.0f} reviews/s |",
        "",
        f"What asks runs on the same cores; medians of {len(one['rounds']['service'])} rounds in turn. "
        + _measured_at(measured),
    ]


def page() -> list[str]:
    """Return how long a visitor of the page waits, beside what was asked of it."""
    measured = _results("page")

    def row(name: str, key: str, asked: str) -> str:
        found = measured[key]
        return f"| {name} | {asked} | **{found['median']:.2f} s** | {found['largest']:.2f} s |"

    return [
        "| | asked | median | longest |",
        "|---|---|---|---|",
        row("`lorafit ui` until it answers", "start_seconds", "8 s"),
        row("a browser's first paint after that", "first_paint_seconds", "2 s"),
        row("a prediction, adapted and base, up to 512 tokens", "prediction_seconds", "0.3 s"),
        row("the same beside a training", "prediction_beside_a_training_seconds", "0.3 s"),
        "",
        f"{measured['rounds']} starts; {measured['prediction_seconds']['n']} IMDB reviews each, from the press to the "
        f"answer in headless Chromium on the same cores. {_measured_at(measured)}",
    ]


def workers() -> list[str]:
    """Return two processes beside one, and what the exchange of gradients costs."""
    measured = _results("workers")
    one, two = (measured["training"][name] for name in ("one", "two"))
    exchanged = measured["exchange"]
    return [
        "| | asked | measured |",
        "|---|---|---|",
        f"| one process, two threads | | {one['tokens_per_second']:,.0f} tokens/s |",
        f"| two processes, one thread each | 0.9 of it | {two['tokens_per_second']:,.0f} tokens/s, "
        f"**{measured['two / one']:.2f}** |",
        f"| exchange of {exchanged['bytes'] / 1e6:.2f} MB of gradients, share of a step | under 3% | "
        f"{1e3 * exchanged['seconds']:.1f} ms, **{exchanged['share_of_a_step']:.1%}** |",
        "",
        f"The demo's recipe, batches of 16; gloo on loopback; medians of {measured['rounds']} rounds in turn. "
        f"{_measured_at(measured)}",
    ]


def prefix() -> list[str]:
    """Return what running the frozen layers once is worth, by the number of adapted layers."""
    measured = _results("prefix")
    eight = measured["eight"]

    def seconds(found: dict[str, Any]) -> str:
        cells = (f"{found['seconds'][name]:.0f} s" for name in ("without", "empty cache", "full cache"))
        times = f"{found['times_with_empty_cache']:.2f} | {found['times_with_full_cache']:.2f}"
        return f"{' | '.join(cells)} | {times} | {found['bytes'] / 1e6:,.0f} MB"

    def row(top: str, found: dict[str, Any]) -> str:
        low, high = found["test"]["accuracy_interval"]
        return f"| last {top} of 6 | {found['test']['accuracy']:.4f} ({low:.3f} to {high:.3f}) | {seconds(found)} |"

    return [
        "| adapters on the | test accuracy | without | cache empty | cache full | times | times | disk |",
        "|---|---|---|---|---|---|---|---|",
        *(row(top, found) for top, found in measured["demo"].items()),
        f"| last 3 of bert-base's 12 | | {seconds(measured['bert_base'])} |",
        "",
        *textwrap.wrap(
            "Seconds of training and validation. The first rows are of the demo's recipe (1,700 reviews, 2 epochs, all "
            "linear layers), seed 0; the last one of bert-base's shape with random weights, 200 reviews, 10 epochs, "
            "query and value. Times: how much faster than without, with an empty cache and with a full one, as a later "
            f"trial finds it. Medians of {measured['rounds']['bert_base']} rounds of bert-base; of the demo "
            f"{measured['rounds']['demo']}. {_measured_at(measured)}",
            WIDTH,
        ),
        "",
        *textwrap.wrap(
            "Eight trainings on bert-base's shape, of ranks 2 to 16 at two rates, 5 epochs over 100 reviews: "
            f"{eight['seconds']['without']:.0f} s without, {eight['seconds']['shared']:.0f} s when they share the "
            f"layers below, **{eight['times']:.2f} times** as fast; validation losses within "
            f"{eight['largest_loss_gap']:.4f} of their own runs'. {_measured_at(eight)}",
            WIDTH,
        ),
    ]


def ray_scoring() -> list[str]:
    """Return a folder answered on Ray beside a file answered by one process."""
    measured = _results("ray_scoring")
    alone, two = (measured["medians"][name] for name in ("alone", "two workers"))
    return [
        f"| {measured['reviews']['two']:,} reviews | asked | reviews a second | whole command |",
        "|---|---|---|---|",
        f"| one process, two threads | | {alone['rows_per_second']:.0f} | {alone['seconds']:.0f} s |",
        f"| Ray, two workers of one core | 0.85 of it | {two['rows_per_second']:.0f}, "
        f"**{measured['rate: two workers / alone']:.2f}** | {two['seconds']:.0f} s, "
        f"{measured['whole command: two workers / alone']:.2f} of the speed |",
        "",
        *textwrap.wrap(
            "Reviews a second: while answers come. The whole command: with Ray's start and end, and two processes that "
            f"import torch. Medians of {measured['rounds']} rounds in turn. {_measured_at(measured)}",
            WIDTH,
        ),
    ]


def capacity() -> list[str]:
    """Return what many reviews cost on many cores, by the model."""
    found = _results("capacity")

    def cell(cost: dict[str, float]) -> str:
        seconds, useful = cost["hours"] * 3600, cost["useful_core_hours"] / cost["core_hours"]
        return f"{_long(seconds)}, {_many(cost['core_hours'])} core-h ({useful:.0%})"

    names = list(found["costs"])
    cores = list(found["costs"][names[0]])
    return [
        f"| reviews to answer | {' | '.join(f'{int(count):,} cores' for count in cores)} |",
        "|---|" + "---|" * len(cores),
        *(f"| {name} | {' | '.join(cell(found['costs'][name][count]) for count in cores)} |" for name in names),
    ]


def capacity_pieces() -> list[str]:
    """Return the pieces of the model, and its check."""
    found = _results("capacity")
    scoring, training, size = found["scoring"], found["training"], found["bytes_per_review"]
    checks = [
        *((f"answering, {name}", pair, "s") for name, pair in scoring["seconds of runs"].items()),
        *((f"training, {name}", pair, "tokens/s") for name, pair in training["tokens a second of runs"].items()),
    ]
    return [
        "| piece | measured |",
        "|---|---|",
        f"| a busy core's time a review of {found['mean_tokens']:.0f} tokens, answering | "
        f"{1e3 * scoring['core_seconds']:.1f} ms |",
        f"| the same of {training['mean_tokens']:.0f} tokens, one pass of training | "
        f"{1e3 * training['core_seconds']:.1f} ms |",
        f"| from the command to the first worker's work, and from the last one's to the end | "
        f"{scoring['start_seconds']:.0f} s |",
        f"| blocks of shards that Ray Data hands out | {scoring['blocks_per_second']:.0f} a second |",
        f"| Parquet read and written a review | {size['read']:,.0f} and {size['written']:,.0f} bytes |",
        f"| gradients exchanged a step of training | {training['bytes'] / 1e6:.2f} MB |",
        "",
        "| check | the model says | measured | the model is off by |",
        "|---|---|---|---|",
        *(
            f"| {name} | {pair['predicted']:,.0f} {unit} | {pair['measured']:,.0f} {unit} | "
            f"{pair['predicted'] / pair['measured'] - 1:+.0%} |"
            for name, pair, unit in checks
        ),
        "",
        f"Measured at {found['scored_at']} and {found['trained_at']} on {found['cores']} cores, {found['date']}.",
    ]


def capacity_training() -> list[str]:
    """Return how training scales with workers at the demo's batch size."""
    found = _results("capacity")["training"]["by_workers"]
    return [
        "| workers of one core | reviews a second | of the ideal | the largest share, over the mean | exchange |",
        "|---|---|---|---|---|",
        *(
            f"| {workers} | {cost['reviews_per_second']:.0f} | "
            f"{cost['reviews_per_second'] / int(workers) / found['1']['reviews_per_second']:.0%} | "
            f"{cost['imbalance']:.2f} | {cost['exchange_share']:.1%} |"
            for workers, cost in found.items()
        ),
    ]


def _long(seconds: float) -> str:
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _many(number: float) -> str:
    for word, size in (("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{number / size:,.1f} {word}"
    return f"{number:.1f}"


BLOCKS = {
    "demo": demo,
    "speed": speed,
    "quality": quality,
    "long-texts": long_texts,
    "handover": handover,
    "exports": exports,
    "bulk": bulk,
    "serve": serve,
    "page": page,
    "workers": workers,
    "prefix": prefix,
    "ray-scoring": ray_scoring,
    "capacity": capacity,
    "capacity-pieces": capacity_pieces,
    "capacity-training": capacity_training,
}
PAGES = (
    "README.md",
    "docs/quality.md",
    "docs/bulk.md",
    "docs/page.md",
    "docs/cluster.md",
    "docs/sweep.md",
    "docs/capacity.md",
)


def _quality_rows(part: str) -> list[dict[str, Any]]:
    return [row for row in _results("quality")["rows"] if row["part"] == part]


def _over_seeds(rows: list[dict[str, Any]]) -> str:
    """Return the cells that rows of several seeds share, in the order of the seeds; empty before they are measured."""
    if not rows:
        return " | | | | "
    rows = sorted(rows, key=lambda row: int(row["recipe"]["seed"]))
    if len({row["recipe"]["seed"] for row in rows}) < len(rows):
        raise ValueError(
            f"results/quality.json has rows of other settings among those of {rows[0]['part']}; drop them."
        )
    accuracies = [row["accuracy"] for row in rows]
    tfidf = statistics.mean(row["tfidf_accuracy"] for row in rows)
    before, after = ([row[key] for row in rows] for key in ("ece_before", "ece_after"))
    cells = (
        f"**{statistics.mean(accuracies):.4f}**",
        ", ".join(f"{accuracy:.4f}" for accuracy in accuracies),
        f"{tfidf:.4f}",
        f"{statistics.mean(before):.3f} -> {statistics.mean(after):.3f} ({min(after):.3f} to {max(after):.3f})",
        f"{statistics.mean(row['tokens'] for row in rows) / 1e6:.1f} million",
    )
    return " | ".join(cells)


def _measured_at(measured: dict[str, Any]) -> str:
    """Return of which code and machine a block's figures are."""
    return f"Measured at {measured['commit']} on {measured['machine']['cores']} cores, {measured['date']}."


def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return found


def filled(text: str) -> str:
    """Return a page with each of its blocks as the results have it."""
    for name, lines in BLOCKS.items():
        begin, end = f"<!-- {name}: made by benchmarks/table.py -->\n", f"<!-- /{name} -->\n"
        before, there, rest = text.partition(begin)
        if not there:
            continue
        text = before + begin + "\n".join(lines()) + "\n" + end + rest.partition(end)[2]
    return text


def main() -> None:
    """Put the blocks into the pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
