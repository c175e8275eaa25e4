"""Rows to ClickHouse."""
