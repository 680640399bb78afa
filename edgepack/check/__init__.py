"""A look at every weight before anything is computed of it: is it a number, can float16 hold it?

Takes the model as it was found, gives warnings. Imports what reads models.
"""
