"""A page on which sharing is a switch."""
