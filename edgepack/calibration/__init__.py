"""Text → tokens → H = Σ w_t x_t x_tᵀ of every linear weight, with one block in memory.

Takes a model and a text (a file, or one that the model writes); gives a folder of tokens and one of
Hessians. May import ``planning``, ``model`` and below.
"""
