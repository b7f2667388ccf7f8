"""One self-contained HTML page about how well calibrated models are: numbers, diagrams, and a verdict in words."""
