"""Programs that run what edgepack exports, and the parts of them that edgepack borrows."""
