"""A page for people: whose sequence, which candidates, why, and how the intent was generated."""
