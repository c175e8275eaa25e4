"""`python -m benchmarks WHAT [--quick …]`: every benchmark by name; `all` is what `make bench` runs."""

from __future__ import annotations

import importlib
import sys

from benchmarks.harness import end_cleanly

WHAT = {
    "processor": "topic → ClickHouse: Arrow blocks, NDJSON blocks, one event per record",
    "peers": "the same work by other programs and the floors, side by side with ours",
    "stages": "each stage of the worker alone, over batch sizes",
    "gateway": "HTTP in → broker's ack: single events, batches, NDJSON, compressed",
    "latency": "HTTP accepted → visible in a query, at shares of the capacity",
    "together": "gateway, broker, worker and ClickHouse at once, for minutes (bench-long: ten)",
    "profile": "where the worker's and the gateway's time goes, as flame graphs",
    "reads": "KPI calls and the exporter's scrape",
    "page": "the live page: the api's share of a core and how far it is behind while browsers watch",
    "growth": "cost over millions of events, memory over time (bench-long)",
    "report": "Markdown, plots and HTML of the series run last",
    "all": "everything but growth, then the report",
}
#: Where the name on the command line is not the module's.
MODULES = {"all": "everything", "peers": "side_by_side"}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in WHAT:
        print("usage: python -m benchmarks WHAT [options]; WHAT is one of")
        for name, text in WHAT.items():
            print(f"  {name:<10} {text}")
        return 2
    end_cleanly()
    module = importlib.import_module(f"benchmarks.{MODULES.get(sys.argv[1], sys.argv[1])}")
    code: int = module.main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
