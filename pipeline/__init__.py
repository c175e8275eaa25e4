"""gridpipe."""
