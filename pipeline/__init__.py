"""gridpipe."""

import os

# polars' allocator gives freed memory back within half a second, and the kernel clears it anew for the next
# block: a tenth of the worker's processor time. It is read when polars is loaded, so it is said here.
os.environ.setdefault("_RJEM_MALLOC_CONF", "background_thread:true,dirty_decay_ms:10000")
