"""The event contract: shape, JSON Schema, CloudEvents, personal data."""
