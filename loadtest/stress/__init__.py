"""Stress tests on real processes: each writes its figures, and whether it passed, to loadtest/results."""
