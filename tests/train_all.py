"""Train recipes one after another, as one of several ranks: torchrun tests/train_all.py FILE...

Each run lies beside its recipe, under its name.
"""

import sys
from pathlib import Path

from lorafit import pipeline, proof, ranks
from lorafit import recipe as recipes

if __name__ == "__main__":
    proof._ask_fresh_process = proof.answer  # a fresh process takes 4 s, and test_proof.py is about it
    for file in map(Path, sys.argv[1:]):
        pipeline.train(recipes.load(file), file.with_suffix(""))
    ranks.end()
