"""The catalogue of matters and the admission rules, as data."""
