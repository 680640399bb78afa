"""The training step as a plain ONNX graph: forward, backward and AdamW over the packed weights.

Takes an output folder; gives a folder that any ONNX Runtime runs, in a browser too. `base` reads
the packed model, `decoder` and `loss` write the forward pass, `autodiff` derives the backward pass,
`step` puts them together, `runner` trains.
"""
