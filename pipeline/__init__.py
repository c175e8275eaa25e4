"""gridpipe."""

import os

# The allocators of polars and of Arrow give freed memory back at once or within half a second, and the kernel
# clears it anew for the next block: a tenth of the worker's processor time and more. Large buffers are kept
# like all others (`oversize_threshold`), in as few arenas as there are cores, so that a thread uses what
# another one freed. Read when the libraries are loaded, so said here.
os.environ.setdefault(
    "_RJEM_MALLOC_CONF",
    "background_thread:true,dirty_decay_ms:10000,muzzy_decay_ms:10000,oversize_threshold:0,"
    f"narenas:{max(os.cpu_count() or 2, 2)}",
)
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "10000")
