"""Runs every model type that transformers can build plain and offloaded, and compares the outputs as bytes.

`python -m model_matrix` in tests/python writes the table in docs/model_types.md. A type is built by
`building` of a configuration that `shrinking` made small, run by `trial` on what `inputs` gives its forward,
in a process of its own that `workers` watches.
"""
