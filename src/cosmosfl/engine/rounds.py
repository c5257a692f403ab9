"""The server's part of a round, the same in every engine: what happened is told in the same events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cosmosfl.events import Event, Traffic
from cosmosfl.protocol import ClientId, Message, ServerSide


def server_round(
    server: ServerSide[Any, Any],
    round: int,
    uplinks: Iterable[tuple[ClientId, Message]],
    opening: dict[ClientId, int],
    log: Callable[[Event], None],
) -> Mapping[ClientId, Message]:
    """Let the server take the answers of a round; return its next messages, and log what it rejected, found and sent.

    Parameters
    ----------
    uplinks
        In the order of the clients' ids, since the server's sums depend on it.
    opening
        Bytes of the first message to each client, which count in the client's first round; they are taken out.
    """
    known, refused = server.clustering, len(server.rejections)
    sizes: dict[ClientId, int] = {}

    def counted() -> Iterator[tuple[ClientId, Message]]:
        for id, uplink in uplinks:
            sizes[id] = uplink.nbytes
            yield id, uplink

    try:
        downlinks: Mapping[ClientId, Message] = server.step(counted())
    finally:
        for rejection in server.rejections[refused:]:
            log(rejection)
    if server.clustering is not None and server.clustering is not known:
        log(server.clustering)
    for id, size in sizes.items():
        down = downlinks[id].nbytes if id in downlinks else 0
        log(Traffic(round, id, size, down + opening.pop(id, 0)))
    return downlinks
