"""KServe's gRPC service for the embedded Ray. Serve's gRPC proxy listens on every address and has no option for it: only loopback is answered."""

from __future__ import annotations

from typing import Any

import grpc

from kfp_components.models import inference_grpc

LOOPBACK = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "ipv6:[::ffff:127.", "ipv6:%5B::ffff:127.", "unix:")


def add_servicer(servicer: Any, server: Any) -> None:
    """As `inference_grpc.add_servicer`; a peer that is not on this machine gets PERMISSION_DENIED."""
    forward = server.service_handler_factory

    def guarded(service_method: str, streaming_type: Any) -> Any:
        handler = forward(service_method=service_method, streaming_type=streaming_type)

        async def only_from_here(request: Any, context: Any) -> Any:
            if not context.peer().startswith(LOOPBACK):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{context.peer()}: the embedded Ray answers on loopback only")
            return await handler(request, context)

        return only_from_here

    server.service_handler_factory = guarded
    try:
        inference_grpc.add_servicer(servicer, server)
    finally:
        server.service_handler_factory = forward
