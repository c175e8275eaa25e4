"""Processes: broker, supervisor, roles."""
