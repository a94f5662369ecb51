"""The bilinear form W_Q W_Kᵀ of one head: its metrics and the closest shared heads. Mathematics only."""
