"""The run directory: what a run writes, finding runs, and progress read from their events."""
