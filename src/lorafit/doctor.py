"""The data looked at before training: counts, lengths, findings in plain words. It goes on where training refuses."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from lorafit import data, encoders, findings, pipeline, predict, splits, tables, tasks, tokens
from lorafit.data import Source, Text, Texts
from lorafit.errors import DataError, EncoderError, HubError, LorafitError, RunError
from lorafit.findings import Finding, Row, Severity
from lorafit.recipe import Data, Recipe
from lorafit.runs import Run
from lorafit.tables import HALF_CHARACTER

_LOST_SHARE = 0.05  # of the tokens, from which on it is a warning
_LABEL_ERRORS_SHOWN = 10
_NEAR_CHANCE = 0.9  # of the errors that the commonest answer would make


@dataclass(frozen=True)
class Lengths:
    """Tokens a text, special ones included, beside the window."""

    max_tokens: int
    median: int
    percentile_95: int
    longest: int
    share_of_texts_longer: float
    share_of_tokens_beyond: float


@dataclass(frozen=True)
class Findings:
    """What `examine` found: counts, lengths (None where they can't be measured), and findings, the gravest first."""

    source: str
    texts: dict[str, int]  # by split; "all" is everything there is
    classes: dict[str, dict[str, int]]  # by label and split
    lengths: Lengths | None
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """What has to be mended."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_record(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Read:
    """A recipe's data as it is looked at: all texts, their rows, and the faults that training would refuse."""

    labels: list[str]
    texts: list[Text]
    rows: list[Row]
    faults: list[Finding]


def examine(recipe: Recipe) -> Findings:
    """Return what there is to know about a recipe's data; nothing is trained, and nothing written.

    Raises:
        DataError: what can't be read as texts with labels: no such file or column, rows without a label.
        HubError: the Hub does not have it, or can't be reached.

    >>> [finding.sentence for finding in examine(recipe.load("recipes/demo.toml")).errors]
    []
    """
    return _examined(recipe, _read(recipe))


def _read(recipe: Recipe) -> _Read:
    settings = recipe.data
    source, found = _mended(data.open_source(settings.source), settings)
    mended = {name: _mended(own, settings) for name, own in pipeline.open_own_sources(settings).items()}
    pool = _clean(source, settings)
    own = {name: _clean(own_source, settings, pool.labels) for name, (own_source, _) in mended.items()}
    parts, refused = _split(recipe, pool, own)
    rows = _rows(source, settings, pool, {name: part for name, part in parts.items() if name not in own})
    found += refused + _empty(source, settings)
    texts = pool.texts
    for name, (own_source, found_there) in mended.items():
        rows += _rows(own_source, settings, own[name], {name: parts.get(name, own[name])}, name)
        found += found_there + _empty(own_source, settings)
        texts = texts + own[name].texts
    return _Read(pool.labels, texts, rows, found)


def _examined(recipe: Recipe, read: _Read) -> Findings:
    settings, rows, labels = recipe.data, read.rows, read.labels
    lengths, unmeasured = _measured(recipe, read.texts)
    found = [
        *read.faults,
        *unmeasured,
        *findings.missing_classes(rows, labels),
        *findings.too_few(rows, labels),
        *findings.leaks(rows),
        *findings.contradictions(rows),
        *findings.encodings(rows),
        *findings.near_duplicates(rows),
        *findings.repeated(rows),
        *findings.markup(rows, settings.html),
    ]
    homes = defaultdict(list)
    for row in rows:
        for label in row.labels:
            homes[label].append(row.split)
    return Findings(
        source=settings.source,
        texts=_by_split(row.split for row in rows),
        classes={label: _by_split(homes[label]) for label in labels},
        lengths=lengths,
        findings=sorted(found, key=lambda finding: get_args(Severity).index(finding.severity)),
    )


def examine_run(run: Run) -> Findings:
    """Return what `examine` finds in a finished run's data, and the likeliest label errors that the run brought out.

    Those are texts of validation and test whose label the adapter, which was not trained on them, contradicts with
    confidence (confident learning: Northcutt, Jiang and Chuang 2021, arXiv:1911.00068; by cleanlab).

    Raises:
        LorafitError: cleanlab is not installed.
        RunError: the run is not finished, or its data has changed since.

    >>> examine_run(runs.open_run("runs/demo")).findings[0].about
    'label errors'
    """
    find_suspects = _cleanlab()
    if not run.finished:
        raise RunError(f"{run.path} is not finished. Go on with: lorafit train --resume {run.path}")
    prepared = pipeline.unchanged_data_of(run)
    classifier = predict.Classifier.load(run.path, precision=run.record["runtime"]["precision"])
    held_out = (prepared.validation, prepared.test)
    texts = [_joined(text) for split in held_out for text in split.texts]
    label_ids = np.concatenate([split.label_ids for split in held_out])
    task = prepared.task
    probabilities = tasks.probabilities(np.concatenate([classifier.logits(split.tokens) for split in held_out]), task)
    suspects = find_suspects(label_ids, probabilities)
    given = tasks.decide(probabilities, task, classifier.thresholds)
    read = _read(run.recipe)
    places = {(row.text, row.labels): row.place for row in reversed(read.rows)}  # of equal ones the first
    examples = []
    for suspect in suspects[:_LABEL_ERRORS_SHOWN]:
        labelled, answer = (_names(ids[suspect], prepared.labels) for ids in (label_ids, given))
        examples.append(_suspicion(texts[suspect], labelled, answer, places.get((texts[suspect], labelled), "")))
    errors = _label_errors(len(suspects), len(texts), examples, _caveat(given, label_ids))
    found = _examined(run.recipe, read)
    return replace(found, findings=errors + found.findings)


def _suspicion(text: str, labelled: tuple[str, ...], answer: tuple[str, ...], place: str) -> str:
    label, said = (", ".join(names) or "none" for names in (labelled, answer))
    return findings.quoted(text, ", ".join([*filter(None, [place]), f"labelled {label}", f"the adapter says {said}"]))


def _caveat(given: np.ndarray, label_ids: np.ndarray) -> str:
    """Return a warning of an adapter that errs about as often as one answer to everything; of others an empty text."""
    commonest = label_ids.mean(axis=0) > 0.5 if label_ids.ndim == 2 else np.bincount(label_ids).argmax()
    errors, of_commonest = (float((answer != label_ids).mean()) for answer in (given, commonest))
    if errors < _NEAR_CHANCE * of_commonest:
        return ""
    return (
        f" But the adapter itself contradicts {errors:.1%} of the labels, and one answer to everything would contradict"
        f" {of_commonest:.1%}: it knows too little to be relied on here."
    )


def _label_errors(suspects: int, texts: int, examples: list[str], caveat: str) -> list[Finding]:
    if not suspects:
        return []
    count = f"{suspects:,} of {texts:,} validation and test texts may have a wrong label"
    sentence = f"{count}, the likeliest first. Read them, and mend those that are wrong.{caveat}"
    return [Finding("warning", "label errors", sentence, suspects, examples)]


def _cleanlab() -> Callable[[np.ndarray, np.ndarray], list[int]]:
    """Return what finds the texts whose label may be wrong, the likeliest first, from label ids and probabilities."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.multilabel_classification.filter import find_label_issues as find_issues_of_several
    except ImportError:
        raise LorafitError("Label errors need cleanlab. Install it with: pip install 'lorafit[doctor]'") from None

    def find(label_ids: np.ndarray, probabilities: np.ndarray) -> list[int]:
        several = label_ids.ndim == 2
        labels = [np.flatnonzero(row).tolist() for row in label_ids] if several else label_ids
        ask = find_issues_of_several if several else find_label_issues
        found = ask(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
        return [int(text) for text in found]

    return find


def _clean(source: Source, settings: Data, known: Sequence[str] = ()) -> Texts:
    return pipeline.clean(source, settings.model_copy(update={"on_empty": "drop"}), known)


def _split(recipe: Recipe, pool: Texts, own: dict[str, Texts]) -> tuple[dict[str, Texts], list[Finding]]:
    """Return the splits as training makes them; none, and what it would say, where it refuses."""
    sizes = (recipe.data.train_size, recipe.data.validation_size, recipe.data.test_size)
    try:
        return splits.split(pool, *sizes, seed=recipe.seed, own=own), []
    except DataError as error:
        return {}, [Finding("error", "splits", str(error))]


def _rows(source: Source, settings: Data, texts: Texts, parts: dict[str, Texts], own: str = "") -> list[Row]:
    """Return a source's texts with their labels by name, their row in the source, and their split.

    Identical texts stand in one split: a text alone tells which.
    """
    homes = {text: name for name, part in parts.items() for text in part.texts}
    named, without = settings.own_sources.get(own, ""), set(_rows_without_text(source, settings))
    numbers = (row + 1 for row in range(len(source.table)) if row not in without)
    return [
        Row(number, _joined(text), _names(ids, texts.labels), homes.get(text, ""), own, named)
        for number, text, ids in zip(numbers, texts.texts, texts.label_ids, strict=True)
    ]


def _names(ids: int | np.ndarray, labels: list[str]) -> tuple[str, ...]:
    """Return the labels of one text, from its id or from its row of 0 and 1."""
    places = [int(ids)] if np.ndim(ids) == 0 else np.flatnonzero(ids).tolist()
    return tuple(labels[place] for place in places)


def _joined(text: Text) -> str:
    return "\n".join(data.parts(text))


def _mended(source: Source, settings: Data) -> tuple[Source, list[Finding]]:
    """Return the source with "?" for half a character, so that the rest can be read, and an error where one stands."""
    halves: dict[int, str] = {}
    columns = {}
    for name in filter(None, (settings.text, settings.text_pair)):
        cells = list(enumerate(tables.column(source.table, name, source.place)))
        broken = {row: HALF_CHARACTER.sub("?", cell) for row, cell in cells if _is_broken(cell)}
        columns[name] = pd.Series([broken.get(row, cell) for row, cell in cells], source.table.index, object)
        halves |= broken
    if not halves:
        return source, []
    sentence = (
        f"{source.place}: {len(halves):,} rows hold half a character, a lone surrogate "
        f"({tables.name_rows(sorted(halves))}). Training refuses them. A text cut within an emoji is the usual cause."
    )
    found = Finding("error", "half characters", sentence, len(halves))
    return replace(source, table=source.table.assign(**columns)), [found]


def _is_broken(cell: Any) -> bool:
    return isinstance(cell, str) and HALF_CHARACTER.search(cell) is not None


def _empty(source: Source, settings: Data) -> list[Finding]:
    empty = _rows_without_text(source, settings)
    if not empty:
        return []
    count = f"{source.place}: {len(empty):,} of {len(source.table):,} rows have no text ({tables.name_rows(empty)})"
    if settings.on_empty == "drop":
        return [Finding("note", "empty texts", f"{count}; they are left out.", len(empty))]
    advice = 'Training refuses them. Mend them, or leave them out with data.on_empty = "drop".'
    return [Finding("error", "empty texts", f"{count}. {advice}", len(empty))]


def _rows_without_text(source: Source, settings: Data) -> list[int]:
    names = [name for name in (settings.text, settings.text_pair) if name]
    columns = [tables.column(source.table, name, source.place) for name in names]

    def is_empty(cell: Any) -> bool:
        return not isinstance(cell, str) or not (data.strip_tags(cell) if settings.html == "strip" else cell).strip()

    return [row for row, cells in enumerate(zip(*columns, strict=True)) if any(map(is_empty, cells))]


def _measured(recipe: Recipe, texts: list[Text]) -> tuple[Lengths | None, list[Finding]]:
    """Return the texts' lengths and what there is to say of them; the encoder's own fault, where it has one."""
    max_tokens = recipe.data.max_tokens
    try:
        files = encoders.locate(recipe.encoder.name)
        tokenizer = encoders.load_tokenizer(files.folder, files.name)
        encoders.refuse_long_window(files, tokenizer, max_tokens)
    except (EncoderError, HubError) as error:
        return None, [Finding("error", "encoder", f"The texts' lengths were not measured. {error}")]
    counts = tokens.whole_lengths(texts, tokenizer)
    median, percentile_95 = np.percentile(counts, [50, 95]).round().astype(int).tolist()
    longer, beyond = counts > max_tokens, np.maximum(counts - max_tokens, 0).sum() / counts.sum()
    lengths = Lengths(max_tokens, median, percentile_95, int(counts.max()), float(longer.mean()), float(beyond))
    return lengths, _too_long(lengths, int(longer.sum()), recipe.data.long_text)


def _too_long(lengths: Lengths, texts: int, long_text: str) -> list[Finding]:
    if not texts:
        return []
    longer = f"{lengths.share_of_texts_longer:.1%} of the texts are longer than {lengths.max_tokens} tokens"
    if long_text.startswith("windows"):
        return [Finding("note", "long texts", f"{longer}; they are read in windows, and nothing is lost.", texts)]
    lost = f"{lengths.share_of_tokens_beyond:.1%} of all tokens are not read"
    advice = "A larger data.max_tokens, or data.long_text, reads more."
    severity: Severity = "warning" if lengths.share_of_tokens_beyond > _LOST_SHARE else "note"
    return [Finding(severity, "long texts", f"{longer} and are cut: {lost}. {advice}", texts)]


def _by_split(homes: Iterable[str]) -> dict[str, int]:
    counts = Counter(homes)
    return {"all": counts.total()} | {name: counts[name] for name in data.SPLITS}
