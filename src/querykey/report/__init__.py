"""What every report shares: figures, the page template and its stylesheet."""
