"""Export the demo's bundle to every form, and write how far each drifts, its size and its rate to results/exports.json.

    python benchmarks/exports.py [RUN]          (make bench-exports)

Without RUN the demo is trained first, by its recipe, in a folder of its own. Each export asks 200 of the run's test
reviews, as `lorafit export` does for everyone; a form that is refused stands there with the reason.
benchmarks/table.py makes the table in the README of it.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import workload

from lorafit import console, pipeline
from lorafit.errors import BundleError
from lorafit.export import export
from lorafit.exported import FORMS

ROOT = Path(__file__).parents[1]


def measure(run: Path, form: str, folder: Path) -> dict[str, Any]:
    """Return what an export's manifest says of it, or why there is none."""
    try:
        made = export(run, form, folder / form).made
    except BundleError as error:
        return {"refused": str(error)}
    return {"bytes": made.bytes, **made.agreement.model_dump(mode="json")}


def main() -> None:
    """Export, and write the results."""
    console.silence()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if sys.argv[1:] else pipeline.train(workload.DEMO, Path(folder) / "demo").path
        rows = {form: measure(run, form, Path(folder)) for form in FORMS}
        record = {**workload.circumstances(), "adapter_sha256": _adapter(run), "forms": rows}
    (ROOT / "results" / "exports.json").write_text(json.dumps(record, indent=2) + "\n")


def _adapter(run: Path) -> str:
    """Return what tells this bundle from others."""
    manifest = json.loads((run / "adapter" / "lorafit.json").read_text())
    return str(manifest["files"]["adapter_model.safetensors"])


if __name__ == "__main__":
    main()
