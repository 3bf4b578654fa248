"""The command line: one module a verb, and only here does anything write to the terminal."""
