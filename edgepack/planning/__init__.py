"""What a build will do, from headers alone.

Takes a recipe and a model's headers; gives a `Plan`, the formats that the recipe names, or an error
that names the key. `target` says what a target must answer. May import ``model`` and below.
"""
