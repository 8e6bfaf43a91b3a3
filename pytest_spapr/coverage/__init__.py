"""What the suite covers: scenarios of a checklist, and what a run's machines did to their connectors."""
