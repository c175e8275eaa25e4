"""HTTP in: checked bytes to blocks on the topic."""
