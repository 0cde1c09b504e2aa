"""A WebSocket into which a browser or program pushes pictures, for a session that is watched.

A message is 8 bytes, the time the picture was taken in milliseconds (big-endian float64), then a
JPEG. One picture is under way at a time: the next one may be sent when the answer has come, which
is {"n": count, "t": time, "pushed": what became of it}. Whoever may open the page may push, by the
same rule, and only from the page's own origin.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from errors import LonglookError
from streaming.sources.push import PushedSource

HEADER = struct.Struct(">d")
NOT_ALLOWED, TOO_LARGE, NO_PICTURE = 4403, 1009, 1003  # close codes
BUSY = 4409
NO_SESSION = 4404


def push_router(
    find_source: Callable[[str], PushedSource | None],
    may_enter: Callable[[WebSocket], bool] = lambda socket: True,
) -> APIRouter:
    """The route /push/{session}, for an application to include.

    find_source: the source that a session is watched from, None where there is none. may_enter: the
    log-in of the application.
    """
    router = APIRouter()

    @router.websocket("/push/{session}")
    async def push(socket: WebSocket, session: str) -> None:
        await socket.accept()
        if not is_same_origin(socket) or not may_enter(socket):
            await socket.close(NOT_ALLOWED)
            return
        source = find_source(session)
        if source is None:
            await socket.close(NO_SESSION)
            return
        try:
            source.attach()
        except LonglookError:
            await socket.close(BUSY)
            return
        try:
            await receive_pictures(socket, source)
        except WebSocketDisconnect:
            pass
        finally:
            source.detach()

    return router


async def receive_pictures(socket: WebSocket, source: PushedSource) -> None:
    count = 0
    while True:
        message = await socket.receive_bytes()
        if len(message) <= HEADER.size:
            await socket.close(NO_PICTURE)
            return
        (taken,) = HEADER.unpack_from(message)
        try:
            pushed = await asyncio.to_thread(source.push, message[HEADER.size :], taken / 1000)
        except LonglookError as error:
            await socket.close(NO_PICTURE, str(error))
            return
        count += 1
        answer: dict[str, Any] = {"n": count, "t": taken, "pushed": pushed.value}
        await socket.send_json(answer)


def is_same_origin(socket: WebSocket) -> bool:
    """Programs send no origin. A page of another site does, and must not push with the user's
    cookies.
    """
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")
