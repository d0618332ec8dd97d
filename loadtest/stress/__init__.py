"""Acceptance on real processes: what must hold through swaps, kills, damage and bad builds."""
