"""Programs that a user might write instead, on the same input, each checked for the right counts."""
