"""From posteriors of the blends of a chunk to what is written about them: sources, images, tables."""
