"""What all rooms use: `Stage`, `Executor`, weights, files and locks, errors, plug-ins, algebra.

Imports no other room; formats are found by name (`core.plugins`).
"""
