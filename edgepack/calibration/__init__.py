"""Text → tokens → H = Σ w_t x_t x_tᵀ of every linear weight, one block in memory."""
