"""An S3 server on loopback, in a process of its own or in this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server


def open_server() -> BaseWSGIServer:
    """A server on a port that is free, not serving yet."""
    # One request at a time: a bucket's conditional writes are atomic, and moto's are then too.
    app = DomainDispatcherApplication(create_backend_app)
    return make_server("127.0.0.1", 0, app, threaded=False)


def environment_of(port: int) -> dict[str, str]:
    """What a process needs to find the server on this port, and to be let in."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def s3_process() -> Iterator[dict[str, str]]:
    """The environment to reach a server in a process of its own, which ends with the block."""
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            assert port, "the S3 server has not started"
            yield environment_of(int(port))
        finally:
            process.kill()


if __name__ == "__main__":
    server = open_server()
    print(server.server_port, flush=True)
    server.serve_forever()
