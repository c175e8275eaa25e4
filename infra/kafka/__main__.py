"""`python -m infra.kafka`: a cluster in the foreground until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from infra.kafka.cluster import Cluster
from pipeline.errors import UnavailableError
from pipeline.runtime.process import EXIT_UNREACHABLE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.kafka", description=__doc__)
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--port", type=int, help="port of the first node; the others follow (default: free)")
    parser.add_argument("--data-dir", type=Path, default=Path("var/kafka"), help="default: %(default)s")
    parser.add_argument("--retention-hours", type=float, default=7 * 24, help="default: %(default)s")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    cluster = Cluster(
        (given.data_dir / f"nodes-{given.nodes}").resolve(),
        nodes=given.nodes,
        jars=given.data_dir,
        ports=range(given.port, given.port + given.nodes) if given.port else (),
        retention_ms=round(given.retention_hours * 3_600_000),
    )
    print(f"starting {given.nodes} Kafka node(s); the first time Maven fetches the jars", flush=True)  # noqa: T201
    try:
        with cluster:
            print(f"bootstrap servers: {cluster.bootstrap}", flush=True)  # noqa: T201
            print(f"use it with:       gridpipe up --kafka {cluster.bootstrap}", flush=True)  # noqa: T201
            while not stop.wait(1.0):
                dead = [node for node in cluster.members if not node.running]
                if dead:
                    raise UnavailableError(f"Kafka node {dead[0].number} ended; see {dead[0].directory}")
            print("stopping", flush=True)  # noqa: T201
    except UnavailableError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_UNREACHABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
