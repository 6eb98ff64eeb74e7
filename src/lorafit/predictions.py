"""What each test text was given, by base, adapted and baselines: kept beside the scores, for what needs the texts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lorafit.errors import RunError
from lorafit.files import write_atomically

_TRUE, _GIVEN, _PROBABILITIES = "label_ids", "given_by_", "probabilities_of_"


@dataclass(frozen=True)
class Predictions:
    """Of the test texts in their order: true label ids, those that each classifier gave, and probabilities.

    Label ids are (texts), or (texts, labels) of 0 and 1; probabilities (texts, labels).
    """

    label_ids: np.ndarray
    given: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]


def write(file: Path, predictions: Predictions) -> None:
    """Write predictions as Parquet, a row a text.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    columns = {"row": np.arange(len(predictions.label_ids)), _TRUE: predictions.label_ids}
    columns |= {_GIVEN + who: given for who, given in predictions.given.items()}
    columns |= {_PROBABILITIES + who: values for who, values in predictions.probabilities.items()}
    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    write_atomically(file, lambda unfinished: pq.write_table(table, unfinished))


def read(file: Path) -> Predictions:
    """Return what `write` wrote.

    Raises:
        RunError: it is not there, or can't be read.
    """
    try:
        table = pq.read_table(file)
        columns = {name: np.stack(table[name].to_numpy()) for name in table.column_names}
        return Predictions(columns[_TRUE], _starting(columns, _GIVEN), _starting(columns, _PROBABILITIES))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{file} can't be read. Make it again with: lorafit evaluate {file.parent}") from error


def _starting(columns: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in columns.items() if name.startswith(prefix)}
