"""``python -m cosmosfl``: the command line."""

from cosmosfl.cli import main

main()
