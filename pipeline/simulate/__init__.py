"""The simulated city: reference files, events with their ledger of truth, the live feed and the demo."""
