"""`python -m lorafit`: what `lorafit` does, for launchers such as torchrun that start modules."""

from lorafit.cli import main

main()
