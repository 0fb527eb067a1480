"""Runs every model type that a library can build plain and offloaded, and compares the outputs as bytes.

`python -m model_matrix SOURCE` in tests/python writes the table of a library's types. A `sources.Source`
knows the types of a library, makes small models of them and what their forwards take; `trial` runs one, in
a process of its own that `workers` watches; `table` writes the document.
"""
