"""lorafit: a pretrained BERT-family encoder becomes a text classifier with LoRA, and proves what the adapter gained.

>>> import lorafit
>>> run = lorafit.train(lorafit.load_recipe("recipes/demo.toml"))
>>> lorafit.evaluate(run).adapted.accuracy
>>> lorafit.Classifier.load(run.path).predict(["A film to remember."])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafit.comparison import compare
    from lorafit.errors import LorafitError, LorafitWarning
    from lorafit.pipeline import evaluate, fetch, plan, prepare, resume, train
    from lorafit.predict import Classifier
    from lorafit.recipe import Recipe
    from lorafit.recipe import load as load_recipe
    from lorafit.runs import Run

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "LorafitError",
    "LorafitWarning",
    "Recipe",
    "Run",
    "compare",
    "evaluate",
    "fetch",
    "load_recipe",
    "plan",
    "prepare",
    "resume",
    "train",
]

# Looked up on first use, so that `import lorafit` and `lorafit --help` load no torch.
_HOMES = {
    "Classifier": ("lorafit.predict", "Classifier"),
    "LorafitError": ("lorafit.errors", "LorafitError"),
    "LorafitWarning": ("lorafit.errors", "LorafitWarning"),
    "Recipe": ("lorafit.recipe", "Recipe"),
    "Run": ("lorafit.runs", "Run"),
    "compare": ("lorafit.comparison", "compare"),
    "load_recipe": ("lorafit.recipe", "load"),
} | {name: ("lorafit.pipeline", name) for name in ("evaluate", "fetch", "plan", "prepare", "resume", "train")}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorafit' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
