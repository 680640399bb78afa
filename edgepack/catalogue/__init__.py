"""What `edgepack models` lists: families from the plug-ins, and what works for each.

Takes nothing; gives rows whose facts are those by which the rooms refuse a family. May import
``finetune`` and below.
"""
