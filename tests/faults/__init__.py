"""What can go wrong in operation, and what must happen then: a test for each row."""
