"""States are merged less often.

`cases` was merged by the engine's own eagerness, six small parts at a time: each state twice before it lay in
a part of its size. Reading twenty parts instead costs a KPI call nothing that can be measured.

Revision: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE cases MODIFY SETTING merge_selector_base = 20")


def downgrade() -> None:
    op.execute("ALTER TABLE cases RESET SETTING merge_selector_base")
