"""The simulated city: reference files, events, ledger of truth."""
