"""The live page at `/`: its files, the figures it shows, and the stream that keeps them current."""
