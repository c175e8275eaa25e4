"""Programs that a user might write instead, on the same input, each checked for the right counts.

They run in an environment of their own (`requirements.txt` here, installed by `benchmarks.peers_inputs` into
var/peers-venv), so that what they need is no dependency of the project.
"""
