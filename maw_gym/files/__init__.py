"""Files that are written whole, under keys made of content, and read with suspicion."""
