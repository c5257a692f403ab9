"""The commands of ``cosmosfl`` that are more than a few lines; `cosmosfl.cli` puts all together."""
