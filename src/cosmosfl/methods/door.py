"""The server's door: what is not what was agreed on is recorded, and the round goes on without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from cosmosfl.protocol import ClientId, InvalidMessageError, Rejection, ServerSide


class OfRound(Protocol):
    """A message that says which round it is of."""

    @property
    def round(self) -> int: ...  # noqa: D102


Answer = TypeVar("Answer", bound=OfRound)
Content = TypeVar("Content")


def accepted(
    server: ServerSide[Any, Any],
    uplinks: Iterable[tuple[ClientId, Answer]],
    check: Callable[[Answer, str], Content],
    what: str,
) -> Iterator[tuple[ClientId, Content]]:
    """Yield the content of messages that are what was agreed on; record the others as rejections of `server`.

    Parameters
    ----------
    check
        ``check(message, source)`` returns the content, or raises `InvalidMessageError`.
    what
        What the messages hold, for the errors.

    Raises
    ------
    InvalidMessageError
        At the end, if there was none.
    """
    n_received = n_accepted = 0
    for client, message in uplinks:
        n_received += 1
        source = f"client {client!r}: {what}"
        try:
            if message.round != server.round:
                raise InvalidMessageError(f"{source} are of round {message.round}; expected {server.round}")
            content = check(message, source)
        except InvalidMessageError as error:
            server.rejections.append(Rejection(server.round, client, str(error)))
            continue
        n_accepted += 1
        yield client, content
    if not n_accepted:
        raise InvalidMessageError(
            f"round {server.round}: none of {n_received} messages was accepted; "
            + "; ".join(r.reason for r in server.rejections if r.round == server.round)
        )
