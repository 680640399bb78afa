"""Weights that already lie on a format's grid, and are taken as they are.

Takes a model; gives the formats that hold each of its weights exactly, and settles a plan's formats
by them.
"""
