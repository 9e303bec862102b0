"""The API server as a process: it writes its port to a file when it is ready, and exits 0 on SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from kfp_components.kube_api.access import read_token_file
from kfp_components.local.apiserver.server import ApiServer, write_atomically


def main() -> int:
    """Run until told to stop; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m kfp_components.local.apiserver", description=__doc__)
    parser.add_argument("--database", type=Path, required=True, help="sqlite file; made when missing")
    parser.add_argument("--token-file", type=Path, required=True, help="one admin token, or a JSON object of accounts by token")
    parser.add_argument("--port-file", type=Path, required=True, help="where to write the port once requests are answered")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = ApiServer(arguments.database, read_token_file(arguments.token_file), arguments.port)
        server.start()
    except (OSError, RuntimeError, ValueError) as error:
        print(f"apiserver: {error}", file=sys.stderr)
        return 1
    write_atomically(arguments.port_file, f"{server.port}\n")
    stop.wait()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
