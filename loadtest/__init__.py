"""Open-loop load tests of the service and their reports."""
