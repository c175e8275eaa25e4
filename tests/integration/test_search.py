"""What the search by an id finds of reports that were sent again, and what it says where it finds nothing."""

from __future__ import annotations

from pathlib import Path

from clickhouse_connect.driver.client import Client

from pipeline.page.search import search
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.sink.tables import Extent, Sink
from tests.integration.read_world import INC, PARTITION
from tests.integration.worker_world import event, load_reference, record, rules_of


def test_a_resend_is_found_by_its_own_id_alone_and_the_answer_says_so(
    clickhouse: Client, tmp_path: Path
) -> None:
    load_reference(clickhouse, tmp_path)
    rules = rules_of(clickhouse)
    first = event(1, submission_id="sent-first")
    again = event(2, submission_id="sent-again", description=first["description"], minutes=1)
    block = Block(PARTITION, [record(0, first), record(1, again)])
    result = process_block(block, PartitionState.empty(rules.settings), rules)
    extent = Extent(PARTITION, block.lo, block.hi)
    Sink(clickhouse, "grid.events").write(result, inc=INC, blocks=[extent], rules=rules.digest)

    for text, outcome in (("sent-first", "admitted"), ("e2", "duplicate")):
        found = search(clickhouse, text)
        assert [hit["outcome"] for hit in found["events"]] == [outcome]
        assert found["note"] is None
    nothing = search(clickhouse, "sent-again")
    assert (nothing["events"], nothing["cases"], nothing["complete"]) == ([], [], True)
    assert "重复提交" in nothing["note"]["zh"]
    assert "事件编号" in nothing["note"]["zh"]
    assert "resent" in nothing["note"]["en"]
