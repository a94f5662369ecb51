"""What each design costs and saves on the user's own machine: time, memory and bytes."""
