"""ClickHouse: clients, migrations, the embedded engine and its HTTP bridge."""
