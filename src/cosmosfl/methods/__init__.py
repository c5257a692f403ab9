"""Federated methods by name, one module each."""

from __future__ import annotations

from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.methods.local import Local
from cosmosfl.protocol import Method

__all__ = ["METHODS", "Cosmos", "Local"]

METHODS: dict[str, type[Method]] = {method.name: method for method in (Cosmos, Local)}
