"""Interaction logs: readers, rules, splits and the synthetic generator."""
