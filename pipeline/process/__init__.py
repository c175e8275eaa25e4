"""The stages: blocks to rows, pure functions on frames, and the worker that runs them."""
