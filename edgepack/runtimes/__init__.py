"""Programs that run exported models, and the parts of them that edgepack uses."""
