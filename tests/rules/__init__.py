"""The sixteen rules of the design, a file for each."""
