//! End to end: the real binary between real clients and real backends.
