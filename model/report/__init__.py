"""One HTML file that shows a model to people: no script, no other file, no other host."""
