"""Golden sets of the library: `builtin:` and the name of a family."""
