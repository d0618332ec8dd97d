"""Comparing models: variants, search, runs, tests, tables and figures."""
