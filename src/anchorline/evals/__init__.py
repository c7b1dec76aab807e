"""What changed and what did not: the style kept, held-out preferences, drift, and how sure the figures are."""
