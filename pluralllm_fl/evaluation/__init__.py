"""Scores, references beside them, probes, baselines, diagnostics and the audit."""
