"""The same functions on Ray, for what outgrows one machine.

Run folders, inputs, outputs and the cache of each machine are files: a cluster of several machines needs a folder that
all of them see, in which the command is started.
"""

from lorafit.cluster.scoring import Asked, score
from lorafit.cluster.searching import sweep
from lorafit.cluster.training import train

__all__ = ["Asked", "score", "sweep", "train"]
