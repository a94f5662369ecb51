"""Reading the query, key and value weights of any trained checkpoint, head by head."""
